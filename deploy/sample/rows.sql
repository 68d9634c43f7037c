-- Rows of the source alone. To see the stream at work, run the last statement again by hand.
INSERT INTO organizations (name) SELECT 'Organization ' || n FROM generate_series(1, 5) AS n;
INSERT INTO profiles (organization_id, email)
SELECT id, 'person' || n || '@' || left(id::text, 8) || '.example'
FROM organizations, generate_series(1, 20) AS n;
INSERT INTO sensor_readings (organization_id, temperature, recorded_at)
SELECT id, round((4 + 3 * sin(n / 50.0))::numeric, 2), now() - n * interval '1 minute'
FROM organizations, generate_series(1, 20000) AS n;
