-- Exact sums, and intervals of sums: of credit in the ledger, and of amounts in payouts. At 95 % only +, -, *, / and square
-- roots of doubles are used, each rounded as IEEE 754 says, so every machine gives the same bits.

CREATE OR REPLACE MACRO _gmv_fixed(x) AS CAST(x * 1152921504606846976.0 AS HUGEINT);
CREATE OR REPLACE MACRO _gmv_fixed_small(x) AS CAST(x * 1152921504606846976.0 AS BIGINT);  -- |x| < 8, and faster
CREATE OR REPLACE MACRO _gmv_floating(total) AS CAST(total AS DOUBLE) / 1152921504606846976.0;

-- The standard normal quantile of p from 0.5 to 1, to 1e-9 (Acklam's approximation).
CREATE OR REPLACE MACRO _gmv_tail(t) AS
    -(((((-7.784894002430293e-3 * t - 3.223964580411365e-1) * t - 2.400758277161838) * t - 2.549732539343734) * t + 4.374664141464968) * t + 2.938163982698783)
    / ((((7.784695709041462e-3 * t + 3.224671290700398e-1) * t + 2.445134137142996) * t + 3.754408661907416) * t + 1);
CREATE OR REPLACE MACRO _gmv_middle(r, q) AS
    (((((-3.969683028665376e+1 * r + 2.209460984245205e+2) * r - 2.759285104469687e+2) * r + 1.383577518672690e+2) * r - 3.066479806614716e+1) * r + 2.506628277459239) * q
    / (((((-5.447609879822406e+1 * r + 1.615858368580409e+2) * r - 1.556989798598866e+2) * r + 6.680131188771972e+1) * r - 1.328068155288572e+1) * r + 1);
CREATE OR REPLACE MACRO _gmv_normal_quantile(p) AS
    CASE WHEN p > 0.97575 THEN _gmv_tail(sqrt(-2 * ln(1 - p))) ELSE _gmv_middle((p - 0.5) * (p - 0.5), p - 0.5) END;

-- A quantile of n numbers' mean under random exponential weights, of which the sums of their first three powers are given: of
-- the distribution with the same mean, variance and skewness (Wilson and Hilferty's approximation). z: a normal quantile.
CREATE OR REPLACE MACRO _gmv_cube(x) AS x * x * x;
CREATE OR REPLACE MACRO _gmv_cubed(skew, z) AS
    2 / skew * (_gmv_cube(greatest(1 - skew * skew / 36 + skew * z / 6, 0)) - 1);
CREATE OR REPLACE MACRO _gmv_weighed(mean, variance, third, z) AS
    mean + sqrt(variance) * CASE WHEN abs(third) < 1e-4 * (variance * sqrt(variance)) THEN z
    ELSE _gmv_cubed(least(greatest(third / (variance * sqrt(variance)), -2), 2), z) END;
CREATE OR REPLACE MACRO _gmv_mean_quantile(n, one, two, three, z) AS
    CASE WHEN two - one * one / n <= 1e-12 * two THEN one / n
    ELSE _gmv_weighed(one / n, (two - one * one / n) / (n * (n + 1)),
                      2 * (three - 3 * one * two / n + 2 * one * one * one / (n * n)) / (n * (n + 1) * (n + 2)), z) END;

-- Intervals of what names earned, ``credit`` (id, x): a row for each name and generated image that it earned by, at most 1.
-- ``images`` (m, most): how many generated images there are, and what they have to give. A bootstrap over the generated
-- images with exponential weights, in closed form, with two halves of an image that is still to come: one gives the name
-- nothing, the other the larger of its largest credit of one image and 1.5 times the mean size that a unit of credit comes
-- in. The row with the id NULL is that of a name without credit. scripts/reproduce/intervals.py measures their coverage.
CREATE OR REPLACE MACRO _gmv_bounds(credit, images, z) AS TABLE
WITH powers AS MATERIALIZED (
    SELECT id, _gmv_floating(sum(_gmv_fixed_small(x))) AS one, _gmv_floating(sum(_gmv_fixed_small(x * x))) AS two,
           _gmv_floating(sum(_gmv_fixed_small(x * x * x))) AS three, max(x) AS largest
    FROM query_table(credit) GROUP BY id
), typical AS (
    SELECT least(1.5 * coalesce(_gmv_floating(sum(_gmv_fixed(two))) / nullif(_gmv_floating(sum(_gmv_fixed(one))), 0), 0), 1) AS size
    FROM powers
), next AS (
    SELECT id, one, two, three, greatest(largest, size) AS x FROM powers, typical
    UNION ALL
    SELECT NULL, 0, 0, 0, size FROM typical
)
SELECT id, least(one, greatest(0, m * _gmv_mean_quantile(m + 1, one + x / 2, two + x * x / 2, three + x * x * x / 2, -z))) AS low,
       greatest(one, least(most, m * _gmv_mean_quantile(m + 1, one + x / 2, two + x * x / 2, three + x * x * x / 2, z))) AS high
FROM next, query_table(images);
