-- The value functions, as macros over the evidence; docs/concepts/method.md says what each one rewards.
-- Every sum that an answer shows is one of integers of 2^-60, so it is the same on any number of threads.

CREATE OR REPLACE MACRO _gmv_fixed(x) AS CAST(x * 1152921504606846976.0 AS HUGEINT);
CREATE OR REPLACE MACRO _gmv_fixed_small(x) AS CAST(x * 1152921504606846976.0 AS BIGINT);  -- |x| < 8, and faster
CREATE OR REPLACE MACRO _gmv_floating(total) AS CAST(total AS DOUBLE) / 1152921504606846976.0;

-- Refused in a sentence; a good value costs nothing.
CREATE OR REPLACE MACRO _gmv_above_zero(temperature) AS
    CASE WHEN temperature > 0 THEN CAST(temperature AS DOUBLE)
    ELSE error('temperature must be above 0 (1 is the paper), not ' || coalesce(CAST(temperature AS VARCHAR), 'NULL')) END;
CREATE OR REPLACE MACRO _gmv_ranks(k) AS
    CASE WHEN k IS NULL THEN 32767 WHEN k >= 1 THEN least(k, 32767)
    ELSE error('k must be at least 1 (NULL is all candidates), not ' || k) END;

-- Generated images that earn credit: of a batch, or all; those of a control set never do.
CREATE OR REPLACE MACRO _gmv_credited(batch) AS TABLE
SELECT g.generated_key, g.quality FROM generated g WHERE NOT g.control AND (batch IS NULL OR g.batch = batch);

-- Distances, as they are or in units of the image's 30th (its last, where there are fewer); these end at 1e6.
CREATE OR REPLACE MACRO _gmv_evidence(relative) AS TABLE
SELECT generated_key, training_key, rank, distance FROM matches WHERE NOT relative
UNION ALL
SELECT generated_key, training_key, rank, least(distance / greatest(unit, 1e-300), 1e6)
FROM matches JOIN (SELECT generated_key, max(distance) AS unit FROM matches WHERE rank <= 30 GROUP BY ALL) USING (generated_key)
WHERE relative;

-- Eq. 6. A group's exponentials are taken against steps of 8 temperatures, and the steps are put on the lowest one: as
-- safe from underflow as taking them against the nearest distance, without looking for it first. Short lists are kept
-- in memory between the two passes; long ones are cheaper to read twice.
CREATE OR REPLACE MACRO _gmv_step(distance, temperature) AS floor(distance / (8 * temperature)) * (8 * temperature);
CREATE OR REPLACE MACRO contributions(k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false) AS TABLE
WITH short AS MATERIALIZED (
    SELECT generated_key, training_key, rank, distance FROM _gmv_evidence(relative) WHERE _gmv_ranks(k) <= 60 AND rank <= _gmv_ranks(k)
), picked AS NOT MATERIALIZED (
    FROM short WHERE _gmv_ranks(k) <= 60
    UNION ALL
    SELECT generated_key, training_key, rank, distance FROM _gmv_evidence(relative)
    WHERE _gmv_ranks(k) > 60 AND (k IS NULL OR rank <= _gmv_ranks(k))
), steps AS (
    SELECT generated_key, _gmv_step(distance, _gmv_above_zero(temperature)) AS base,
           sum(_gmv_fixed_small(exp((_gmv_step(distance, _gmv_above_zero(temperature)) - distance) / _gmv_above_zero(temperature)))) AS weight
    FROM picked GROUP BY ALL
), lowest AS (
    SELECT generated_key, min(base) AS base FROM steps GROUP BY generated_key
), totals AS (
    SELECT generated_key, l.base, _gmv_floating(sum(CAST(s.weight * exp((l.base - s.base) / temperature) AS HUGEINT))) AS total
    FROM steps s JOIN lowest l USING (generated_key) GROUP BY ALL
), scale AS (
    SELECT generated_key, t.base, CASE WHEN quality_weighted THEN coalesce(g.quality, 1.0) ELSE 1.0 END AS quality,
           t.total + CASE WHEN null_distance IS NULL THEN 0.0
                     ELSE exp((t.base - null_distance) / temperature) END AS total
    FROM totals t JOIN _gmv_credited(batch) g USING (generated_key)
), shares AS (
    SELECT generated_key, base, quality, quality / total AS share FROM scale
)
SELECT generated_key, p.training_key, p.rank, p.distance, s.quality,
       s.share * exp((s.base - p.distance) / temperature) AS contribution
FROM picked p JOIN shares s USING (generated_key);

-- Training images by name, for lists of values: every one, zeros included.
CREATE OR REPLACE MACRO named_images() AS TABLE
SELECT t.training_key, t.point_id, n.uri, t.label
FROM training t LEFT JOIN (SELECT training_key, min(uri) AS uri FROM sources GROUP BY training_key) n USING (training_key)
WHERE t.version_withdrawn IS NULL;

-- Eq. 5.
CREATE OR REPLACE MACRO image_values(k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false) AS TABLE
WITH sums AS (
    SELECT training_key, _gmv_floating(sum(_gmv_fixed_small(contribution))) AS value, count(*) AS matches
    FROM contributions(k := k, temperature := temperature, quality_weighted := quality_weighted, batch := batch, null_distance := null_distance, relative := relative)
    GROUP BY training_key
)
SELECT t.*, coalesce(s.value, 0.0) AS value, coalesce(s.matches, 0) AS matches
FROM named_images() t LEFT JOIN sums s USING (training_key);

-- Attributes are looked up by JSON pointer: their names may have quotes, dots and slashes.
CREATE OR REPLACE MACRO group_name(field, image, owner, label, licence, attributes) AS
    CASE field WHEN 'image' THEN image WHEN 'owner' THEN owner WHEN 'label' THEN label WHEN 'licence' THEN licence
    ELSE json_extract_string(attributes, '/' || replace(replace(field, '~', '~0'), '/', '~1')) END;

-- Who holds what: a row for each training image and name that its sources bear. ``weight / weight_total`` of the image's credit goes
-- to the name. Images that one name holds alone share its id as their holder_group, so that they are added up together; others
-- are a holder_group each, -training_key.
CREATE OR REPLACE MACRO holders(field) AS TABLE
WITH held AS MATERIALIZED (
    SELECT t.training_key, group_name(field, t.point_id, s.owner, s.label, s.licence, s.attributes) AS name, count(*) AS weight
    FROM training t LEFT JOIN sources s USING (training_key)
    WHERE t.version_withdrawn IS NULL GROUP BY ALL
), names AS MATERIALIZED (
    SELECT name, CAST(row_number() OVER (ORDER BY name NULLS LAST) AS INTEGER) AS id FROM (SELECT DISTINCT name FROM held)
), images AS (
    SELECT training_key, count(*) AS names, CAST(sum(weight) AS BIGINT) AS weight_total FROM held GROUP BY training_key
)
SELECT training_key, n.id, n.name, CASE WHEN i.names = 1 THEN n.id ELSE -training_key END AS holder_group,
       CASE WHEN i.names = 1 THEN 1 ELSE h.weight END AS weight, CASE WHEN i.names = 1 THEN 1 ELSE i.weight_total END AS weight_total
FROM held h JOIN names n ON n.name IS NOT DISTINCT FROM h.name JOIN images i USING (training_key);

CREATE OR REPLACE MACRO credits(field, k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false) AS TABLE
WITH held AS MATERIALIZED (
    FROM holders(field)
), earned AS (
    SELECT holder_group, sum(_gmv_fixed_small(contribution)) AS value, count(*) AS matches
    FROM contributions(k := k, temperature := temperature, quality_weighted := quality_weighted, batch := batch, null_distance := null_distance, relative := relative)
    JOIN (SELECT DISTINCT training_key, holder_group FROM held) USING (training_key) GROUP BY holder_group
), grouped AS (
    SELECT id, sum(value * weight // weight_total) AS value, CAST(sum(matches) AS BIGINT) AS matches
    FROM earned JOIN (SELECT DISTINCT holder_group, id, weight, weight_total FROM held) USING (holder_group) GROUP BY id
)
SELECT n.name, _gmv_floating(coalesce(value, 0)) AS value, coalesce(value, 0) / nullif(sum(value) OVER (), 0) AS share,
       n.images, coalesce(matches, 0) AS matches
FROM (SELECT id, name, count(*) AS images FROM held GROUP BY ALL) n LEFT JOIN grouped USING (id);

-- exp(entropy) of each generated image's contributions, normalised.
CREATE OR REPLACE MACRO effective_contributors(k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false) AS TABLE
WITH totals AS (
    SELECT generated_key, min(distance) AS best_distance, _gmv_floating(sum(_gmv_fixed_small(contribution))) AS total,
           _gmv_floating(sum(_gmv_fixed_small(CASE WHEN contribution > 0 THEN contribution * ln(contribution) ELSE 0 END))) AS bits
    FROM contributions(k := k, temperature := temperature, quality_weighted := false, batch := batch,
                       null_distance := null_distance, relative := relative)
    GROUP BY generated_key
)
SELECT generated_key, CASE WHEN total > 0 THEN total * exp(-bits / total) END AS effective, best_distance FROM totals;

-- The relative errors of sum_i V_ij = q_j (the worst one) and of sum_i phi_i = sum_j q_j. A generated image without any
-- match counts as an error of 1, unless there are no training images, or it waits for 'update'.
CREATE OR REPLACE MACRO conservation(k := 30) AS TABLE
WITH sums AS (
    SELECT generated_key, sum(_gmv_fixed_small(contribution)) AS total FROM contributions(k := k) GROUP BY generated_key
), per_image AS (
    SELECT _gmv_floating(coalesce(s.total, 0)) AS total, coalesce(g.quality, 1.0) AS quality
    FROM generated g LEFT JOIN sums s USING (generated_key)
    WHERE NOT g.control AND (s.total IS NOT NULL OR (
        EXISTS (FROM training WHERE version_withdrawn IS NULL)
        AND version_valued >= coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'training_version'), 0)))
)
SELECT coalesce(max(abs(total - quality) / greatest(quality, 1e-9)), 0) AS per_image,
       coalesce(abs(_gmv_floating(sum(_gmv_fixed(total)) - sum(_gmv_fixed(quality)))) / nullif(_gmv_floating(sum(_gmv_fixed(quality))), 0), 0)
           AS overall
FROM per_image;

-- Shapley value of v_j(S) = q_j * max over the images of the owners in S of exp(-d_ij/T), relative to the best of all:
-- the airport game. Its total is q_j, and a second image of the same owner changes nothing unless it is nearer.
CREATE OR REPLACE MACRO owner_shapley(field := 'owner', k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false) AS TABLE
WITH held AS MATERIALIZED (
    FROM holders(field)
), players AS (
    SELECT generated_key, h.id, min(m.distance) AS distance, count(*) AS matches
    FROM _gmv_evidence(relative) m JOIN _gmv_credited(batch) g USING (generated_key) JOIN held h USING (training_key)
    WHERE m.rank <= _gmv_ranks(k)
    GROUP BY ALL
    UNION ALL
    SELECT generated_key, NULL, CAST(null_distance AS DOUBLE), 0 FROM _gmv_credited(batch) g
    WHERE null_distance IS NOT NULL
), nearness AS (
    SELECT *, exp((min(distance) OVER (PARTITION BY generated_key) - distance) / _gmv_above_zero(temperature)) AS u FROM players
), steps AS (
    SELECT *, row_number() OVER nearest AS place, u - coalesce(lead(u) OVER nearest, 0.0) AS rise
    FROM nearness WINDOW nearest AS (PARTITION BY generated_key ORDER BY distance, id)
), shares AS (
    SELECT generated_key, id, matches, sum(_gmv_fixed_small(rise / place)) OVER (
        PARTITION BY generated_key ORDER BY place DESC ROWS UNBOUNDED PRECEDING) AS share
    FROM steps
), grouped AS (
    SELECT id, sum(_gmv_fixed_small(CASE WHEN quality_weighted THEN coalesce(quality, 1.0) ELSE 1.0 END * _gmv_floating(share))) AS value,
           CAST(sum(matches) AS BIGINT) AS matches
    FROM shares JOIN generated USING (generated_key) WHERE id IS NOT NULL GROUP BY id
)
SELECT n.name, _gmv_floating(coalesce(value, 0)) AS value, coalesce(value, 0) / nullif(sum(value) OVER (), 0) AS share,
       n.images, coalesce(matches, 0) AS matches
FROM (SELECT id, name, count(*) AS images FROM held GROUP BY ALL) n LEFT JOIN grouped USING (id);

-- Shapley value of v_j(S) = mean of exp(-d_ij/T) over the k images of S nearest to j (an absent one counts 0), over all
-- candidates, scaled to the total q_j: KNN-Shapley. What an image replaces counts, so neighbours beyond k have value, too.
CREATE OR REPLACE MACRO knn_shapley(k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false) AS TABLE
WITH players AS (
    SELECT generated_key, training_key, m.distance FROM _gmv_evidence(relative) m JOIN _gmv_credited(batch) g USING (generated_key)
    UNION ALL
    SELECT generated_key, NULL, CAST(null_distance AS DOUBLE) FROM _gmv_credited(batch) g
    WHERE null_distance IS NOT NULL
), nearness AS (
    SELECT *, exp((min(distance) OVER (PARTITION BY generated_key) - distance) / _gmv_above_zero(temperature)) AS u FROM players
), steps AS (
    SELECT *, row_number() OVER nearest AS place, u - coalesce(lead(u) OVER nearest, 0.0) AS rise
    FROM nearness WINDOW nearest AS (PARTITION BY generated_key ORDER BY distance, training_key)
), sums AS (
    SELECT *, sum(_gmv_fixed_small(rise * least(_gmv_ranks(k), place) / place)) OVER (
        PARTITION BY generated_key ORDER BY place DESC ROWS UNBOUNDED PRECEDING) AS share
    FROM steps
), totals AS (
    SELECT generated_key, sum(share) AS total FROM sums GROUP BY generated_key
), grouped AS (
    SELECT training_key, count(*) AS matches,
           _gmv_floating(sum(_gmv_fixed_small(CASE WHEN quality_weighted THEN coalesce(quality, 1.0) ELSE 1.0 END
                                    * (_gmv_floating(share) / _gmv_floating(total))))) AS value
    FROM sums JOIN totals USING (generated_key) JOIN generated USING (generated_key)
    WHERE training_key IS NOT NULL GROUP BY training_key
)
SELECT t.*, coalesce(s.value, 0.0) AS value, coalesce(s.matches, 0) AS matches
FROM named_images() t LEFT JOIN grouped s USING (training_key);

-- Poisson(1) from a number in [0, 1).
CREATE OR REPLACE MACRO _gmv_poisson(u) AS
    CASE WHEN u < 0.36787944117144233 THEN 0 WHEN u < 0.7357588823428847 THEN 1 WHEN u < 0.9196986029286058 THEN 2
         WHEN u < 0.9810118431238462 THEN 3 WHEN u < 0.9963401531726563 THEN 4 WHEN u < 0.9994058151824183 THEN 5
         WHEN u < 0.9999167588507119 THEN 6 WHEN u < 0.9999897508033253 THEN 7 ELSE 8 END;
CREATE OR REPLACE MACRO _gmv_uniform(text) AS (md5_number_lower(text) >> 11) / 9007199254740992.0;

-- Poisson bootstrap over the generated images: credit and share if the same generator had drawn as many others.
-- Images are shuffled into at most 1,000 blocks, and a block is drawn as one. level: in percent, or below 1 a fraction.
CREATE OR REPLACE MACRO _gmv_fraction(level) AS CASE WHEN level > 1 THEN level / 100.0 ELSE level END;
CREATE OR REPLACE MACRO _gmv_tails(level) AS [0.5 - _gmv_fraction(level) / 2, 0.5 + _gmv_fraction(level) / 2];
CREATE OR REPLACE MACRO credit_intervals(field, level := 95, replicates := 400, seed := 0, k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false) AS TABLE
WITH held AS MATERIALIZED (
    FROM holders(field)
), names AS (
    SELECT DISTINCT id, name FROM held
), shuffled AS (
    SELECT generated_key, row_number() OVER (ORDER BY md5_number(seed || ' image ' || generated_key)) % 1000 AS block
    FROM _gmv_credited(batch) g
), sizes AS (
    SELECT block, count(*) AS size FROM shuffled GROUP BY block
), draws AS MATERIALIZED (
    SELECT replicate, block, size, _gmv_poisson(_gmv_uniform(seed || ' draw ' || replicate || ' ' || block)) AS times
    FROM sizes CROSS JOIN range(replicates) AS r(replicate)
), scales AS (
    SELECT replicate, sum(size) / sum(size * times) AS scale FROM draws GROUP BY replicate HAVING sum(times) > 0
), earned AS (
    SELECT block, holder_group, sum(_gmv_fixed_small(contribution)) AS value
    FROM contributions(k := k, temperature := temperature, quality_weighted := quality_weighted, batch := batch, null_distance := null_distance, relative := relative)
    JOIN (SELECT DISTINCT training_key, holder_group FROM held) USING (training_key) JOIN shuffled USING (generated_key) GROUP BY ALL
), grouped AS (
    SELECT block, id, CAST(sum(value * weight // weight_total) // 1048576 AS BIGINT) AS value  -- in 2^-40
    FROM earned JOIN (SELECT DISTINCT holder_group, id, weight, weight_total FROM held) USING (holder_group) GROUP BY ALL
), drawn AS (
    SELECT replicate, id, sum(value * times) AS value
    FROM grouped JOIN draws USING (block) WHERE times > 0 GROUP BY ALL
), totals AS (
    SELECT replicate, sum(value) AS total FROM drawn GROUP BY replicate
), outcomes AS (
    SELECT n.id, coalesce(d.value, 0) / 1099511627776.0 * s.scale AS value, coalesce(d.value, 0) / nullif(t.total, 0) AS share
    FROM names n CROSS JOIN scales s LEFT JOIN totals t USING (replicate)
    LEFT JOIN drawn d ON d.id = n.id AND d.replicate = s.replicate
), bounds AS (
    SELECT id, quantile_cont(value, _gmv_tails(level)) AS of_value, quantile_cont(share, _gmv_tails(level)) AS of_share
    FROM outcomes GROUP BY id
)
SELECT n.name, of_value[1] AS low, of_value[2] AS high, of_share[1] AS share_low, of_share[2] AS share_high
FROM names n LEFT JOIN bounds USING (id);

-- How near each generated image comes to its nearest training image, and how unusual that is. p_value: the share of the
-- control images that come at least as near, one added to both (NULL without a control set). q_value: Benjamini and
-- Hochberg's, over the images asked for: the share of false discoveries among all that are at least as unusual. among_training:
-- the share of training images whose own nearest neighbour is at least as near (NULL before `copies --training`).
CREATE OR REPLACE MACRO nearness(batch := NULL) AS TABLE
WITH asked AS (
    FROM _gmv_credited(batch)
), line AS (
    SELECT 'generated' AS kind, generated_key, training_key, distance FROM matches JOIN asked USING (generated_key) WHERE rank = 1
    UNION ALL
    SELECT 'control', NULL, NULL, distance FROM matches JOIN generated USING (generated_key) WHERE rank = 1 AND control
    UNION ALL
    SELECT 'training', NULL, NULL, distance FROM neighbours n
    JOIN training t USING (training_key) JOIN training o ON o.training_key = n.neighbour_key
    WHERE rank = 1 AND t.version_withdrawn IS NULL AND o.version_withdrawn IS NULL
), counted AS (
    SELECT *, count(*) FILTER (WHERE kind = 'control') OVER nearer AS controls_nearer,
           count(*) FILTER (WHERE kind = 'training') OVER nearer AS training_nearer,
           count(*) FILTER (WHERE kind = 'control') OVER () AS controls, count(*) FILTER (WHERE kind = 'training') OVER () AS trained
    FROM line WINDOW nearer AS (ORDER BY distance RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
), judged AS (
    SELECT generated_key, training_key, distance,
           CASE WHEN controls > 0 THEN (1 + controls_nearer) / (1 + controls) END AS p_value,
           training_nearer / nullif(trained, 0) AS among_training
    FROM counted WHERE kind = 'generated'
), stepped AS (
    SELECT *, p_value * count(*) OVER () / count(*) OVER (ORDER BY p_value RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS step
    FROM judged
)
SELECT generated_key, training_key, distance, p_value,
       min(step) OVER (ORDER BY p_value DESC RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS q_value, among_training
FROM stepped;

CREATE OR REPLACE MACRO _gmv_owners() AS TABLE
SELECT training_key, min(uri) AS uri, list_sort(list(DISTINCT owner) FILTER (WHERE owner IS NOT NULL)) AS owners FROM sources GROUP BY ALL;

-- The same with names, the nearest first: is this nearly a copy, and of whose image?
CREATE OR REPLACE MACRO copies(batch := NULL) AS TABLE
SELECT g.uri AS generated, g.batch, o.uri AS training, array_to_string(o.owners, '; ') AS owners, n.distance, n.p_value, n.q_value,
       n.among_training
FROM nearness(batch := batch) n JOIN generated g USING (generated_key) LEFT JOIN _gmv_owners() o USING (training_key)
ORDER BY n.p_value NULLS LAST, n.distance, g.uri;

-- Training images of different owners that are nearly the same, the nearest first: claims to look at. Each pair once.
CREATE OR REPLACE MACRO claims() AS TABLE
WITH pairs AS (
    SELECT least(training_key, neighbour_key) AS a, greatest(training_key, neighbour_key) AS b, min(distance) AS distance
    FROM neighbours GROUP BY ALL
), own AS (
    SELECT min(distance) AS distance FROM neighbours WHERE rank = 1 GROUP BY training_key
)
SELECT x.uri AS one, array_to_string(x.owners, '; ') AS owners, y.uri AS other, array_to_string(y.owners, '; ') AS other_owners, p.distance,
       (SELECT count(*) FILTER (WHERE own.distance <= p.distance) / count(*) FROM own) AS among_training
FROM pairs p JOIN _gmv_owners() x ON x.training_key = a JOIN _gmv_owners() y ON y.training_key = b
JOIN training t ON t.training_key = a AND t.version_withdrawn IS NULL JOIN training u ON u.training_key = b AND u.version_withdrawn IS NULL
WHERE x.owners IS DISTINCT FROM y.owners
ORDER BY p.distance, one, other;
