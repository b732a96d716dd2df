-- Credit as money counts it: integers of 2^-60 of a generated image, for each generated image and who is paid for it.
-- Only +, -, *, / of doubles and integers are used, each rounded as IEEE 754 says, so every machine gives the same
-- units. docs/concepts/payouts.md is the specification, and scripts/verify_payout.py another implementation of it.

-- exp(-x) for x >= 0, to 2^-52; 0 from 43 on, where it is less than a unit. x is reduced by whole multiples of ln 2 (in
-- two parts), the rest is a Taylor series. Constants are written with exponents: others would be decimals.
CREATE MACRO _series(r) AS
    ((((((((((((1.6059043836821613e-10 * r + 2.08767569878681e-9) * r + 2.505210838544172e-8) * r + 2.755731922398589e-7) * r
    + 2.7557319223985893e-6) * r + 2.48015873015873e-5) * r + 1.984126984126984e-4) * r + 1.388888888888889e-3) * r
    + 8.333333333333333e-3) * r + 4.1666666666666664e-2) * r + 1.6666666666666666e-1) * r + 5e-1) * r + 1e0) * r + 1e0;
CREATE MACRO _halved(x, n) AS
    _series((n * 6.93147180369123816490e-1 - x) + n * 1.90821492927058770002e-10) / (CAST(1 AS BIGINT) << CAST(n AS BIGINT));
CREATE MACRO _exp_minus(x) AS CASE WHEN x < 43e0 THEN _halved(x, round(x * 1.4426950408889634e0)) ELSE 0e0 END;
CREATE MACRO _units(x) AS CAST(x * 1.152921504606846976e18 AS BIGINT);  -- |x| < 8

-- Who is paid for an image: the distinct names of its sources; where none of them names anybody, NULL.
CREATE TABLE held AS
SELECT DISTINCT i.image, s.name FROM images i LEFT JOIN (FROM sources WHERE name IS NOT NULL) s USING (image);
CREATE TABLE names AS
SELECT CAST(row_number() OVER (ORDER BY name NULLS LAST) AS INTEGER) AS id, name FROM (SELECT DISTINCT name FROM held);
CREATE TABLE holders AS
SELECT image, n.id, count(*) OVER (PARTITION BY image) AS holders FROM held h JOIN names n ON n.name IS NOT DISTINCT FROM h.name;

-- Distances, as they are or in units of the image's 30th (its last, where there are fewer); these end at 1e6.
CREATE MACRO _scaled(k, relative) AS TABLE
SELECT generated, rank, image, distance FROM matches WHERE NOT relative AND rank <= k
UNION ALL
SELECT generated, rank, image, least(distance / greatest(unit, 1e-300), 1e6)
FROM matches JOIN (SELECT generated, max(distance) AS unit FROM matches WHERE rank <= 30 GROUP BY generated) USING (generated)
WHERE relative AND rank <= k;

CREATE MACRO _qualities(quality_weighted) AS TABLE
SELECT generated, CASE WHEN quality_weighted THEN _units(coalesce(quality, 1e0)) ELSE _units(1e0) END AS quality FROM generated;

-- Eq. 6, and an image's part to each of its holders in equal shares. Nobody, at null_distance, has the id 0.
CREATE MACRO shares(k, temperature, quality_weighted, null_distance, relative) AS TABLE
WITH players AS (
    SELECT generated, rank, image, distance FROM _scaled(k, relative)
    UNION ALL
    SELECT generated, NULL, NULL, CAST(null_distance AS DOUBLE) FROM generated WHERE null_distance IS NOT NULL
), weights AS (
    SELECT *, _units(_exp_minus((distance - min(distance) OVER (PARTITION BY generated)) / temperature)) AS weight FROM players
), parts AS (
    SELECT generated, rank, image, CAST(weight AS HUGEINT) * quality // sum(weight) OVER (PARTITION BY generated) AS units
    FROM weights JOIN _qualities(quality_weighted) USING (generated)
)
SELECT generated, coalesce(h.id, 0) AS id, p.image, p.rank, p.units // coalesce(h.holders, 1) AS units
FROM parts p LEFT JOIN holders h USING (image);

-- Near-copies that one holder has count as one picture: none of them is nearer than the farthest that it is nearly the same as.
CREATE MACRO _as_one(k, relative) AS TABLE
WITH near AS (
    SELECT generated, id, rank, image, distance FROM _scaled(k, relative) JOIN holders USING (image)
), twins AS (
    SELECT image, other FROM copies UNION SELECT other, image FROM copies
), among AS (
    FROM near SEMI JOIN twins USING (image)
), farthest AS (
    SELECT generated, id, a.image, max(b.distance) AS distance
    FROM among a JOIN twins USING (image) JOIN among b USING (generated, id) WHERE b.image = other GROUP BY ALL
)
SELECT generated, id, rank, greatest(n.distance, coalesce(f.distance, 0e0)) AS distance
FROM near n LEFT JOIN farthest f USING (generated, id, image);

-- Shapley value of v(S) = quality * max over the images held by S of exp(-distance / temperature), relative to the best:
-- of each holder the nearest image counts. Nobody, at null_distance, plays along and has the id 0.
CREATE MACRO owner_shapley(k, temperature, quality_weighted, null_distance, relative) AS TABLE
WITH players AS (
    SELECT generated, id, arg_min(rank, {d: distance, r: rank}) AS rank, min(distance) AS distance FROM _as_one(k, relative)
    GROUP BY generated, id
    UNION ALL
    SELECT generated, 0, NULL, CAST(null_distance AS DOUBLE) FROM generated WHERE null_distance IS NOT NULL
), nearness AS (
    SELECT *, _exp_minus((distance - min(distance) OVER (PARTITION BY generated)) / temperature) AS u FROM players
), steps AS (
    SELECT *, row_number() OVER nearest AS place, u - coalesce(lead(u) OVER nearest, 0e0) AS rise
    FROM nearness WINDOW nearest AS (PARTITION BY generated ORDER BY distance, id)
), parts AS (
    SELECT generated, id, rank, sum(_units(rise / place)) OVER (
        PARTITION BY generated ORDER BY place DESC ROWS UNBOUNDED PRECEDING) AS part
    FROM steps
)
SELECT generated, p.id, m.image, rank, CAST(part AS HUGEINT) * quality // 1152921504606846976 AS units
FROM parts p JOIN _qualities(quality_weighted) USING (generated) LEFT JOIN matches m USING (generated, rank);

-- What one of the two rules gave; the ids of those who are paid nothing.
CREATE TABLE earned (generated INTEGER, id INTEGER, image INTEGER, rank INTEGER, units HUGEINT);
CREATE TABLE excluded (id INTEGER);

-- 95 % intervals of shares of the credit, in 2^-40 (ledger/intervals.sql). The row with the id NULL is that of a name without
-- credit.
CREATE VIEW single AS
SELECT id, CAST(sum(units) AS DOUBLE) / 1152921504606846976e0 AS x FROM earned ANTI JOIN excluded USING (id) GROUP BY generated, id;
CREATE VIEW given AS
SELECT CAST((SELECT count(*) FROM generated) AS DOUBLE) AS m, CAST(sum(units) AS DOUBLE) / 1152921504606846976e0 AS most
FROM earned ANTI JOIN excluded USING (id);
CREATE VIEW intervals AS
SELECT id, CAST(floor(low / most * 1099511627776e0) AS BIGINT) AS low, CAST(ceil(high / most * 1099511627776e0) AS BIGINT) AS high
FROM _gmv_bounds('single', 'given', 1.959963984540054e0), given WHERE most > 0;
