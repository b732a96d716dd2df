-- The value functions, as macros over the evidence. Sums are exact integers of 2^-60, so they don't depend on threads.

CREATE OR REPLACE MACRO fixed(x) AS CAST(round(x * 1152921504606846976.0) AS BIGINT);
CREATE OR REPLACE MACRO floating(total) AS CAST(total AS DOUBLE) / 1152921504606846976.0;

-- Eq. 6, evaluated against the nearest distance of the group.
CREATE OR REPLACE MACRO contributions(k := 30, temperature := 1.0, calibrated := true, batch := NULL, no_contributor := NULL) AS TABLE
WITH nearest AS (
    SELECT m.generated_key, m.distance AS best, CASE WHEN calibrated THEN coalesce(g.quality, 1.0) ELSE 1.0 END AS quality
    FROM matches m JOIN generated g USING (generated_key)
    WHERE m.rank = 1 AND (batch IS NULL OR g.batch = batch)
), scale AS (
    SELECT m.generated_key, any_value(n.best) AS best, any_value(n.quality) AS quality,
           floating(sum(fixed(exp((n.best - m.distance) / temperature))))
             + CASE WHEN no_contributor IS NULL THEN 0.0 ELSE exp((any_value(n.best) - no_contributor) / temperature) END AS total
    FROM matches m JOIN nearest n USING (generated_key)
    WHERE k IS NULL OR m.rank <= k
    GROUP BY m.generated_key
)
SELECT m.generated_key, m.training_key, m.rank, m.distance, s.quality,
       s.quality * (exp((s.best - m.distance) / temperature) / s.total) AS contribution
FROM matches m JOIN scale s USING (generated_key)
WHERE k IS NULL OR m.rank <= k;

-- Eq. 5: every training image, zeros included.
CREATE OR REPLACE MACRO image_values(k := 30, temperature := 1.0, calibrated := true, batch := NULL, no_contributor := NULL) AS TABLE
WITH sums AS (
    SELECT training_key, floating(sum(fixed(contribution))) AS value, count(*) AS matches
    FROM contributions(k := k, temperature := temperature, calibrated := calibrated, batch := batch, no_contributor := no_contributor)
    GROUP BY training_key
), named AS (SELECT training_key, min(uri) AS uri FROM sources GROUP BY training_key)
SELECT t.training_key, t.point_id, n.uri, t.label, coalesce(s.value, 0.0) AS value, coalesce(s.matches, 0) AS matches
FROM training t LEFT JOIN named n USING (training_key) LEFT JOIN sums s USING (training_key)
WHERE t.epoch_withdrawn IS NULL;

CREATE OR REPLACE MACRO group_name(field, owner, label, licence, attributes) AS
    CASE field WHEN 'owner' THEN owner WHEN 'label' THEN label WHEN 'licence' THEN licence
    ELSE json_extract_string(attributes, '$."' || field || '"') END;

CREATE OR REPLACE MACRO credits(field, k := 30, temperature := 1.0, calibrated := true, batch := NULL, no_contributor := NULL) AS TABLE
WITH split AS (
    SELECT training_key, group_name(field, owner, label, licence, attributes) AS name,
           1.0 / count(*) OVER (PARTITION BY training_key) AS part
    FROM sources
), grouped AS (
    SELECT name, floating(sum(CAST(round(v.value * part * 1152921504606846976.0) AS HUGEINT))) AS value, count(DISTINCT training_key) AS images,
           CAST(sum(v.matches) AS BIGINT) AS matches
    FROM split JOIN image_values(k := k, temperature := temperature, calibrated := calibrated, batch := batch,
                                 no_contributor := no_contributor) v USING (training_key)
    GROUP BY name
)
SELECT name, value, value / nullif(sum(value) OVER (), 0) AS share, images, matches FROM grouped;

CREATE OR REPLACE MACRO effective_contributors(k := 30, temperature := 1.0, calibrated := true, batch := NULL, no_contributor := NULL) AS TABLE
WITH parts AS (
    SELECT generated_key, distance, contribution / sum(contribution) OVER (PARTITION BY generated_key) AS p
    FROM contributions(k := k, temperature := temperature, calibrated := false, batch := batch, no_contributor := no_contributor)
)
SELECT generated_key, exp(-sum(CASE WHEN p > 0 THEN p * ln(p) ELSE 0 END)) AS effective, min(distance) AS best_distance
FROM parts GROUP BY generated_key;

CREATE OR REPLACE MACRO conservation(k := 30) AS TABLE
WITH per_image AS (
    SELECT generated_key, floating(sum(fixed(contribution))) AS total, any_value(quality) AS quality
    FROM contributions(k := k) GROUP BY generated_key
)
SELECT coalesce(max(abs(total - quality) / greatest(quality, 1e-9)), 0) AS per_image,
       coalesce(abs(sum(total) - sum(quality)) / nullif(sum(quality), 0), 0) AS overall
FROM per_image;
