-- The value functions, as macros over the evidence; docs/concepts/method.md says what each one rewards.
-- Every sum that an answer shows is one of integers of 2^-60, so it is the same on any number of threads.
-- Names that begin with _gmv_ are for the macros' own use. The comments before the others are kept in the file.
-- All take the arguments of `contributions`; as_of only moves credit among names.

-- Refused in a sentence; a good value costs nothing.
CREATE OR REPLACE MACRO _gmv_above_zero(temperature) AS
    CASE WHEN temperature > 0 THEN CAST(temperature AS DOUBLE)
    ELSE error('temperature must be above 0 (1 is the paper), not ' || coalesce(CAST(temperature AS VARCHAR), 'NULL')) END;
CREATE OR REPLACE MACRO _gmv_ranks(k) AS
    CASE WHEN k IS NULL THEN 32767 WHEN k >= 1 THEN least(k, 32767)
    ELSE error('k must be at least 1 (NULL is all candidates), not ' || k) END;
CREATE OR REPLACE MACRO _gmv_known(batch) AS
    CASE WHEN batch IS NULL OR EXISTS (FROM generated g WHERE g.batch = batch) THEN batch
    ELSE error('no generated image was valued in a batch ''' || batch || ''' (there are: '
               || coalesce((SELECT string_agg(DISTINCT g.batch, ', ' ORDER BY g.batch) FROM generated g), 'none') || ')') END;

-- What a calibration says, by its name (the latest version) or as name@version; NULL without one.
CREATE OR REPLACE MACRO _gmv_fitted(calibration) AS (
    SELECT coalesce(
        max_by({temperature: temperature, null_distance: null_distance, relative: relative}, version) FILTER (asked IN (name, name || '@' || version)),
        CASE WHEN any_value(asked) IS NULL THEN NULL
        WHEN any_value(asked) = 'loss' THEN {temperature: 0.25::DOUBLE, null_distance: NULL::DOUBLE, relative: true}
        ELSE error('there is no calibration ''' || any_value(asked) || ''' (there are: '
                   || coalesce(string_agg(name || '@' || version, ', ' ORDER BY name, version) || ', ', '') || 'loss)') END)
    FROM (SELECT calibration AS asked) LEFT JOIN calibrations ON asked IS NOT NULL);
CREATE OR REPLACE MACRO _gmv_temperature(temperature, calibration) AS
    CASE WHEN calibration IS NULL THEN temperature ELSE _gmv_fitted(calibration).temperature END;
CREATE OR REPLACE MACRO _gmv_null(null_distance, calibration) AS
    CASE WHEN calibration IS NULL THEN null_distance ELSE _gmv_fitted(calibration).null_distance END;
CREATE OR REPLACE MACRO _gmv_relative(relative, calibration) AS
    CASE WHEN calibration IS NULL THEN relative ELSE _gmv_fitted(calibration).relative END;

-- Generated images that earn credit: of a batch, or all; those of a control set never do.
CREATE OR REPLACE MACRO _gmv_credited(batch) AS TABLE
SELECT g.generated_key, g.quality FROM generated g WHERE NOT g.control AND (batch IS NULL OR g.batch = batch)
UNION ALL
SELECT NULL, NULL WHERE batch IS NOT NULL AND _gmv_known(batch) IS NULL;  -- no row, or the error
CREATE OR REPLACE MACRO _gmv_quality(quality, quality_weighted) AS
    CASE WHEN quality_weighted THEN coalesce(quality, 1.0) ELSE 1.0 END;

-- Distances, as they are or in units of the image's 30th (its last, where there are fewer); these end at 1e6.
CREATE OR REPLACE MACRO _gmv_evidence(relative) AS TABLE
SELECT generated_key, training_key, rank,
       CASE WHEN relative THEN least(distance / greatest(unit, 1e-300), 1e6) ELSE distance END AS distance
FROM matches LEFT JOIN (
    SELECT generated_key, max(distance) AS unit FROM matches WHERE relative AND rank <= 30 GROUP BY ALL
) USING (generated_key);

-- Who counts as nobody: in each of these images, at null_distance.
CREATE OR REPLACE MACRO _gmv_strangers(batch, null_distance) AS TABLE
SELECT generated_key, CAST(null_distance AS DOUBLE) AS distance
FROM _gmv_credited(batch) SEMI JOIN matches USING (generated_key) WHERE null_distance IS NOT NULL;

-- Sums of the exponentials of each image's rows in ``evidence``, against a base. They are taken against steps of 8
-- temperatures, and the steps are put on the lowest one: as safe from underflow as taking them against the nearest distance,
-- without looking for it first.
CREATE OR REPLACE MACRO _gmv_step(distance, temperature) AS floor(distance / (8 * temperature)) * (8 * temperature);
CREATE OR REPLACE MACRO _gmv_totals(evidence, temperature) AS TABLE
WITH steps AS (
    SELECT generated_key, _gmv_step(distance, _gmv_above_zero(temperature)) AS base,
           sum(_gmv_fixed_small(exp((_gmv_step(distance, _gmv_above_zero(temperature)) - distance) / _gmv_above_zero(temperature)))) AS weight
    FROM query_table(evidence) GROUP BY ALL
), lowest AS (
    SELECT generated_key, min(base) AS base FROM steps GROUP BY generated_key
)
SELECT generated_key, l.base, _gmv_floating(sum(CAST(s.weight * exp((l.base - s.base) / temperature) AS HUGEINT))) AS total
FROM steps s JOIN lowest l USING (generated_key) GROUP BY ALL;

-- Eq. 6: one row for each of the k nearest training images of each generated image. With a null_distance, what they leave
-- of the image's quality is nobody's. k NULL: all candidates. temperature: T in exp(-d/T). quality_weighted: by the images' quality.
-- batch: only these generated images. relative: distances are in units of the image's 30th. calibration: temperature,
-- null_distance and relative as 'default' (its latest version), 'default@2' or 'loss' (with k := NULL) has them.
CREATE OR REPLACE MACRO contributions(k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false, as_of := NULL, calibration := NULL) AS TABLE
WITH short AS MATERIALIZED (  -- short lists are kept in memory between two passes; long ones are cheaper to read twice
    FROM _gmv_evidence(_gmv_relative(relative, calibration)) WHERE _gmv_ranks(k) <= 60 AND rank <= _gmv_ranks(k)
), picked AS NOT MATERIALIZED (
    FROM short WHERE _gmv_ranks(k) <= 60
    UNION ALL
    FROM _gmv_evidence(_gmv_relative(relative, calibration)) WHERE _gmv_ranks(k) > 60 AND (k IS NULL OR rank <= _gmv_ranks(k))
), shares AS (
    SELECT generated_key, t.base, _gmv_quality(g.quality, quality_weighted) AS quality,
           _gmv_quality(g.quality, quality_weighted) / (t.total + CASE
               WHEN _gmv_null(null_distance, calibration) IS NULL THEN 0.0 ELSE exp((t.base - _gmv_null(null_distance, calibration)) / _gmv_temperature(temperature, calibration)) END) AS share
    FROM _gmv_totals('picked', _gmv_temperature(temperature, calibration)) t JOIN _gmv_credited(batch) g USING (generated_key)
)
SELECT generated_key, p.training_key, p.rank, p.distance, s.quality,
       s.share * exp((s.base - p.distance) / _gmv_temperature(temperature, calibration)) AS contribution
FROM picked p JOIN shares s USING (generated_key);

-- What `contributions` leaves to nobody.
CREATE OR REPLACE MACRO _gmv_nobody(k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false, as_of := NULL, calibration := NULL) AS TABLE
WITH picked AS (
    FROM _gmv_evidence(_gmv_relative(relative, calibration)) WHERE _gmv_null(null_distance, calibration) IS NOT NULL AND (k IS NULL OR rank <= _gmv_ranks(k))
)
SELECT generated_key, _gmv_quality(g.quality, quality_weighted) / (1 + t.total * exp((_gmv_null(null_distance, calibration) - t.base) / _gmv_temperature(temperature, calibration))) AS contribution
FROM _gmv_totals('picked', _gmv_temperature(temperature, calibration)) t JOIN _gmv_credited(batch) g USING (generated_key);

-- Sources as they are, or as they were at a time (UTC).
CREATE OR REPLACE MACRO _gmv_sources(as_of) AS TABLE
SELECT training_key, uri, owner, label, licence, attributes FROM sources WHERE as_of IS NULL
UNION ALL
SELECT training_key, uri, owner, label, licence, attributes FROM source_history
WHERE as_of IS NOT NULL AND since <= CAST(as_of AS TIMESTAMP) AND (until IS NULL OR until > CAST(as_of AS TIMESTAMP));

-- Training images as lists show them: the first URI, and every owner and label, by name.
CREATE OR REPLACE MACRO _gmv_images(as_of) AS TABLE
WITH plain AS MATERIALIZED (
    SELECT training_key, min(uri) AS uri, min(owner) AS owner, max(owner) AS last_owner, min(label) AS label, max(label) AS last_label
    FROM _gmv_sources(as_of) GROUP BY training_key
), several AS (
    SELECT training_key, string_agg(DISTINCT owner, ', ' ORDER BY owner) AS owner, string_agg(DISTINCT label, ', ' ORDER BY label) AS label
    FROM _gmv_sources(as_of) SEMI JOIN (FROM plain WHERE owner <> last_owner OR label <> last_label) USING (training_key)
    GROUP BY training_key
)
SELECT training_key, t.point_id, p.uri, coalesce(s.owner, p.owner) AS owner, coalesce(s.label, p.label) AS label
FROM training t LEFT JOIN plain p USING (training_key) LEFT JOIN several s USING (training_key)
WHERE t.version_withdrawn IS NULL;

-- The training images: a row for each, with its first URI, and its owners and labels joined by commas.
CREATE OR REPLACE VIEW images AS FROM _gmv_images(NULL);

-- Contents that several owners say are theirs: a row for each, with the owners, and how many sources bring it.
CREATE OR REPLACE VIEW shared_images AS
SELECT training_key, any_value(t.point_id) AS point_id, list(DISTINCT s.owner ORDER BY s.owner) AS owners,
       count(DISTINCT s.uri) AS sources
FROM training t JOIN sources s USING (training_key)
WHERE t.version_withdrawn IS NULL GROUP BY training_key HAVING count(DISTINCT s.owner) > 1;

-- Eq. 5: the value of every training image, zeros included. With a null_distance, a last row has nobody's part.
CREATE OR REPLACE MACRO image_values(k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false, as_of := NULL, calibration := NULL) AS TABLE
WITH sums AS (
    SELECT training_key, _gmv_floating(sum(_gmv_fixed_small(contribution))) AS value, count(*) AS matches
    FROM contributions(k := k, temperature := temperature, quality_weighted := quality_weighted, batch := batch, null_distance := null_distance, relative := relative, calibration := calibration)
    GROUP BY training_key
)
SELECT t.*, coalesce(s.value, 0.0) AS value, coalesce(s.matches, 0) AS matches, false AS nobody
FROM _gmv_images(as_of) t LEFT JOIN sums s USING (training_key)
UNION ALL
SELECT NULL, NULL, '(nobody)', NULL, NULL, _gmv_floating(coalesce(sum(_gmv_fixed_small(contribution)), 0)), 0, true
FROM _gmv_nobody(k := k, temperature := temperature, quality_weighted := quality_weighted, batch := batch, null_distance := null_distance, relative := relative, calibration := calibration) HAVING _gmv_null(null_distance, calibration) IS NOT NULL;

-- Attributes are looked up by JSON pointer: their names may have quotes, dots and slashes.
CREATE OR REPLACE MACRO _gmv_name(field, image, owner, label, licence, attributes) AS
    CASE field WHEN 'image' THEN image WHEN 'owner' THEN owner WHEN 'label' THEN label WHEN 'licence' THEN licence
    ELSE json_extract_string(attributes, '/' || replace(replace(field, '~', '~0'), '/', '~1')) END;

-- Who holds what: a row for each training image and name that its sources bear, with the part of the image's credit that
-- goes to the name: equal parts to the owners that are named, and of an owner's part equal parts to that owner's sources
-- (sources that name nobody count only where none names anybody). Images that one name holds alone share its id as their
-- holder_group, so that they are added up together; others are a holder_group each, -training_key.
CREATE OR REPLACE MACRO _gmv_holders(field, as_of) AS TABLE
WITH said AS (
    SELECT t.training_key, s.owner, _gmv_name(field, t.point_id, s.owner, s.label, s.licence, s.attributes) AS name
    FROM training t LEFT JOIN _gmv_sources(as_of) s USING (training_key) WHERE t.version_withdrawn IS NULL
), images AS MATERIALIZED (
    SELECT training_key, min(name) AS name, count(owner) AS owned,
           count(name) = 0 OR min(name) = max(name) AND (field = 'owner' OR count(name) = count(*)) AS alone
    FROM said GROUP BY training_key
), counted AS MATERIALIZED (
    SELECT training_key, s.owner, s.name, count(*) OVER (PARTITION BY training_key, s.owner) AS by_owner
    FROM said s JOIN images i USING (training_key) WHERE NOT i.alone AND (s.owner IS NOT NULL OR i.owned = 0)
), parts AS (
    SELECT training_key, name, _gmv_floating(sum(_gmv_fixed_small(1.0 / (by_owner * owners)))) AS weight
    FROM counted JOIN (
        SELECT training_key, greatest(count(DISTINCT owner), 1) AS owners FROM counted GROUP BY training_key
    ) USING (training_key) GROUP BY training_key, name
), held AS MATERIALIZED (
    SELECT training_key, name, 1.0::DOUBLE AS weight, true AS alone FROM images WHERE alone
    UNION ALL
    SELECT training_key, name, weight, false FROM parts
), names AS (
    SELECT name, CAST(row_number() OVER (ORDER BY name NULLS LAST) AS INTEGER) AS id FROM (SELECT DISTINCT name FROM held)
)
SELECT training_key, n.id, n.name, CASE WHEN h.alone THEN n.id ELSE -training_key END AS holder_group, h.weight
FROM held h JOIN names n ON n.name IS NOT DISTINCT FROM h.name;

-- Values by name: rows (id, value in 2^-60, matches), the id 0 being nobody, as people see them.
CREATE OR REPLACE MACRO _gmv_named(names, summed, null_distance) AS TABLE
SELECT n.name, _gmv_floating(coalesce(s.value, 0)) AS value, coalesce(s.value, 0) / nullif(sum(s.value) OVER (), 0) AS share,
       n.images, coalesce(s.matches, 0) AS matches, n.id = 0 AS nobody
FROM (
    SELECT id, name, count(*) AS images FROM query_table(names) GROUP BY ALL
    UNION ALL SELECT 0, '(nobody)', 0 WHERE null_distance IS NOT NULL
) n LEFT JOIN query_table(summed) s USING (id);

-- Values summed by 'owner', 'label', 'licence' or any attribute of the sources: every name, zeros included; the name NULL
-- is of images whose sources name none, and with a null_distance a row marked so has nobody's part.
-- as_of: a time (UTC), for what the sources said then.
CREATE OR REPLACE MACRO credits(field := 'owner', k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false, as_of := NULL, calibration := NULL) AS TABLE
WITH held AS MATERIALIZED (
    FROM _gmv_holders(field, as_of)
), earned AS (
    SELECT holder_group, sum(_gmv_fixed_small(contribution)) AS value, count(*) AS matches
    FROM contributions(k := k, temperature := temperature, quality_weighted := quality_weighted, batch := batch, null_distance := null_distance, relative := relative, calibration := calibration)
    JOIN (SELECT DISTINCT training_key, holder_group FROM held) USING (training_key) GROUP BY holder_group
), summed AS (
    SELECT id, sum(CASE WHEN weight = 1 THEN value ELSE CAST(value * weight AS HUGEINT) END) AS value,
           CAST(sum(matches) AS BIGINT) AS matches
    FROM earned JOIN (SELECT DISTINCT holder_group, id, weight FROM held) USING (holder_group) GROUP BY id
    UNION ALL
    SELECT 0, sum(_gmv_fixed_small(contribution)), 0
    FROM _gmv_nobody(k := k, temperature := temperature, quality_weighted := quality_weighted, batch := batch, null_distance := null_distance, relative := relative, calibration := calibration) HAVING _gmv_null(null_distance, calibration) IS NOT NULL
)
FROM _gmv_named('held', 'summed', _gmv_null(null_distance, calibration));

-- Over how many training images the credit of each generated image is spread: exp of the entropy of its contributions; and
-- its nearest distance.
CREATE OR REPLACE MACRO effective_contributors(k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false, as_of := NULL, calibration := NULL) AS TABLE
WITH totals AS (
    SELECT generated_key, min(distance) AS best_distance, _gmv_floating(sum(_gmv_fixed_small(contribution))) AS total,
           _gmv_floating(sum(_gmv_fixed_small(CASE WHEN contribution > 0 THEN contribution * ln(contribution) ELSE 0 END))) AS bits
    FROM contributions(k := k, temperature := temperature, quality_weighted := false, batch := batch,
                       null_distance := null_distance, relative := relative, calibration := calibration)
    GROUP BY generated_key
)
SELECT generated_key, CASE WHEN total > 0 THEN total * exp(-bits / total) END AS effective, best_distance FROM totals;

-- How far the sums are from what they must be: the relative errors of sum_i V_ij = q_j (the worst one) and of sum_i phi_i =
-- sum_j q_j. A generated image without any match counts as an error of 1, unless there are no training images, or it waits
-- for 'update'.
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

-- For each generated image and name (id) of ``held``, its Shapley value in v(S) = max over the images of the names in S of
-- exp(-d/T), relative to the best of all: the airport game. A second image of a name changes nothing unless it is nearer.
CREATE OR REPLACE MACRO _gmv_airport(held, k, temperature, batch, null_distance, relative) AS TABLE
WITH players AS (
    SELECT generated_key, h.id, min(m.distance) AS distance, count(*) AS matches
    FROM _gmv_evidence(relative) m JOIN query_table(held) h USING (training_key)
    WHERE m.rank <= _gmv_ranks(k) AND (batch IS NULL OR m.generated_key IN (SELECT generated_key FROM _gmv_credited(batch)))
    GROUP BY ALL
    UNION ALL
    SELECT generated_key, 0, distance, 0 FROM _gmv_strangers(batch, null_distance)
), steps AS (
    SELECT generated_key, id, matches, row_number() OVER nearest AS place,
           exp((first_value(distance) OVER nearest - distance) / _gmv_above_zero(temperature))
           - coalesce(exp((first_value(distance) OVER nearest - lead(distance) OVER nearest) / temperature), 0.0) AS rise
    FROM players WINDOW nearest AS (PARTITION BY generated_key ORDER BY distance, id)
)
SELECT generated_key, id, matches, _gmv_floating(sum(_gmv_fixed_small(rise / place)) OVER (
    PARTITION BY generated_key ORDER BY place DESC ROWS UNBOUNDED PRECEDING)) AS share
FROM steps;

-- Credit by name that near-copies don't earn: the Shapley value of the names in a game in which only the nearest image of
-- each counts. Columns and arguments are those of credits.
CREATE OR REPLACE MACRO owner_shapley(field := 'owner', k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false, as_of := NULL, calibration := NULL) AS TABLE
WITH held AS MATERIALIZED (
    FROM _gmv_holders(field, as_of)
), summed AS (
    SELECT id, sum(_gmv_fixed_small(_gmv_quality(quality, quality_weighted) * share)) AS value, CAST(sum(matches) AS BIGINT) AS matches
    FROM _gmv_airport('held', k, _gmv_temperature(temperature, calibration), batch, _gmv_null(null_distance, calibration), _gmv_relative(relative, calibration)) JOIN _gmv_credited(batch) USING (generated_key) GROUP BY id
)
FROM _gmv_named('held', 'summed', _gmv_null(null_distance, calibration));

-- Credit by image that counts what an image replaces: the Shapley value of the images in v(S) = mean of exp(-d/T) over the k
-- of S nearest to the generated image, scaled to its quality. Neighbours beyond k have value, too.
-- Columns and arguments are those of image_values.
CREATE OR REPLACE MACRO knn_shapley(k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false, as_of := NULL, calibration := NULL) AS TABLE
WITH players AS (
    SELECT generated_key, training_key, distance FROM _gmv_evidence(_gmv_relative(relative, calibration))
    WHERE batch IS NULL OR generated_key IN (SELECT generated_key FROM _gmv_credited(batch))
    UNION ALL
    SELECT generated_key, -1, distance FROM _gmv_strangers(batch, _gmv_null(null_distance, calibration))
), steps AS (
    SELECT generated_key, training_key, row_number() OVER nearest AS place,
           exp((first_value(distance) OVER nearest - distance) / _gmv_above_zero(_gmv_temperature(temperature, calibration)))
           - coalesce(exp((first_value(distance) OVER nearest - lead(distance) OVER nearest) / _gmv_temperature(temperature, calibration)), 0.0) AS rise
    FROM players WINDOW nearest AS (PARTITION BY generated_key ORDER BY distance, training_key)
), shares AS (
    SELECT generated_key, training_key, sum(_gmv_fixed_small(rise * least(_gmv_ranks(k), place) / place)) OVER (
        PARTITION BY generated_key ORDER BY place DESC ROWS UNBOUNDED PRECEDING) AS share
    FROM steps
), totals AS (
    SELECT generated_key, sum(share) AS total FROM shares GROUP BY generated_key
), sums AS (
    SELECT training_key, count(*) AS matches, _gmv_floating(sum(_gmv_fixed_small(
        _gmv_quality(quality, quality_weighted) * (_gmv_floating(share) / _gmv_floating(total))))) AS value
    FROM shares JOIN totals USING (generated_key) JOIN _gmv_credited(batch) USING (generated_key) GROUP BY training_key
)
SELECT t.*, coalesce(s.value, 0.0) AS value, coalesce(s.matches, 0) AS matches, false AS nobody
FROM _gmv_images(as_of) t LEFT JOIN sums s USING (training_key)
UNION ALL
SELECT NULL, NULL, '(nobody)', NULL, NULL, coalesce(max(value), 0.0), 0, true FROM sums WHERE training_key = -1 HAVING _gmv_null(null_distance, calibration) IS NOT NULL;

-- Intervals of credit: what the same generator, asked for as many other images, would give each name.
-- level: in percent, or below 1 a fraction. rule: 'shares' or 'owner-shapley'. The others are those of credits.
CREATE OR REPLACE MACRO credit_intervals(field := 'owner', level := 95, rule := 'shares', k := 30, temperature := 1.0, quality_weighted := true, batch := NULL, null_distance := NULL, relative := false, as_of := NULL, calibration := NULL) AS TABLE
WITH held AS MATERIALIZED (
    FROM _gmv_holders(field, as_of)
), credit AS (
    SELECT generated_key, id, _gmv_floating(sum(_gmv_fixed_small(contribution * weight))) AS x
    FROM contributions(k := k, temperature := temperature, quality_weighted := quality_weighted, batch := batch, null_distance := null_distance, relative := relative, calibration := calibration)
    JOIN held USING (training_key) WHERE rule = 'shares' GROUP BY ALL
    UNION ALL
    SELECT generated_key, 0, contribution
    FROM _gmv_nobody(k := k, temperature := temperature, quality_weighted := quality_weighted, batch := batch, null_distance := null_distance, relative := relative, calibration := calibration) WHERE rule = 'shares'
    UNION ALL
    SELECT generated_key, id, _gmv_quality(quality, quality_weighted) * share
    FROM _gmv_airport('held', k, _gmv_temperature(temperature, calibration), batch, _gmv_null(null_distance, calibration), _gmv_relative(relative, calibration)) JOIN _gmv_credited(batch) USING (generated_key)
    WHERE rule = 'owner-shapley'
), images AS (
    SELECT CAST(count(*) AS DOUBLE) AS m, _gmv_floating(sum(_gmv_fixed_small(_gmv_quality(quality, quality_weighted)))) AS most
    FROM _gmv_credited(batch)
), names AS (
    SELECT DISTINCT id, name FROM held UNION ALL SELECT 0, '(nobody)' WHERE _gmv_null(null_distance, calibration) IS NOT NULL
), bounds AS MATERIALIZED (
    FROM _gmv_bounds('credit', 'images', _gmv_normal_quantile(0.5 + (CASE WHEN level > 1 THEN level / 100.0 ELSE level END) / 2))
)
SELECT name, coalesce(b.low, z.low) AS low, coalesce(b.high, z.high) AS high, n.id = 0 AS nobody
FROM names n LEFT JOIN bounds b USING (id) JOIN bounds z ON z.id IS NULL;

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

-- Owners of each training image, by name, as a list; and its first URI.
CREATE OR REPLACE MACRO _gmv_owners(as_of) AS TABLE
SELECT training_key, min(uri) AS uri, list(DISTINCT owner ORDER BY owner) FILTER (WHERE owner IS NOT NULL) AS owners
FROM _gmv_sources(as_of) GROUP BY training_key;

-- Generated images with their nearest training image, the nearest first: is this nearly a copy, and of whose image? Figures
-- are those of nearness.
CREATE OR REPLACE MACRO copies(batch := NULL) AS TABLE
SELECT g.uri AS generated, g.batch, o.uri AS training, array_to_string(o.owners, '; ') AS owners, n.distance, n.p_value, n.q_value,
       n.among_training
FROM nearness(batch := batch) n JOIN generated g USING (generated_key) LEFT JOIN _gmv_owners(NULL) o USING (training_key)
ORDER BY n.p_value NULLS LAST, n.distance, g.uri;

-- Training images of different owners that are nearly the same, the nearest first: claims to look at. Each pair once.
CREATE OR REPLACE MACRO claims() AS TABLE
WITH pairs AS (
    SELECT least(training_key, neighbour_key) AS a, greatest(training_key, neighbour_key) AS b, min(distance) AS distance
    FROM neighbours GROUP BY ALL
), own AS (
    SELECT min(distance) AS distance FROM neighbours GROUP BY training_key
)
SELECT x.uri AS one, array_to_string(x.owners, '; ') AS owners, y.uri AS other, array_to_string(y.owners, '; ') AS other_owners, p.distance,
       (SELECT count(*) FILTER (WHERE own.distance <= p.distance) / count(*) FROM own) AS among_training
FROM pairs p JOIN _gmv_owners(NULL) x ON x.training_key = a JOIN _gmv_owners(NULL) y ON y.training_key = b
WHERE x.owners IS DISTINCT FROM y.owners
ORDER BY p.distance, one, other;
