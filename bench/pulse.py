"""A steady load: pgbench as the writers, whose transactions are sensors' reports with a pulse to look out for."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.process import run

WRITERS = 4
TABLE = "pulses"
SCHEMA = f"""
CREATE TABLE public.{TABLE} (writer integer, seq integer, PRIMARY KEY (writer, seq));
"""
# On the source alone. No two writers wait for each other's rows.
FUNCTION = f"""
CREATE TABLE public.pulse_units (writer, n, unit) AS
    SELECT (number % {WRITERS})::integer, (number / {WRITERS})::integer, id
    FROM (SELECT id, row_number() OVER (ORDER BY id) - 1 AS number FROM public.units) AS numbered;
CREATE UNIQUE INDEX ON public.pulse_units (writer, n);
{"".join(f"CREATE SEQUENCE public.pulse_{writer};" for writer in range(WRITERS))}
CREATE FUNCTION public.bench_pulse(of_writer integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    number integer := nextval('public.pulse_' || of_writer);
    of_unit uuid := (SELECT unit FROM public.pulse_units WHERE writer = of_writer AND n = number % (
        SELECT 1 + max(n) FROM public.pulse_units WHERE writer = of_writer));
BEGIN
    INSERT INTO public.sensor_readings (unit_id, temperature, humidity, battery, signal_strength, recorded_at, source)
    VALUES (of_unit, 3.5, 40, 90, -70, timestamptz '2025-01-01' + number * interval '1 second', 'ble');
    UPDATE public.units SET last_reading_at = now(), last_temperature = number % 500 WHERE id = of_unit;
    INSERT INTO public.{TABLE} VALUES (of_writer, number);
END $$
"""


def write(programs: Path, dsn: str, *, rate: int, seconds: float, first: list[int]) -> dict[tuple[int, int], int]:
    """Write for so long, so many transactions a second.

    ``first``: each writer's highest number before.

    Returns: when each commit returned, nanoseconds since 1970, by writer and number.
    """
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory, "pulse.sql")
        script.write_text("SELECT public.bench_pulse(:client_id);\n")
        run(
            [
                programs / "pgbench", "--no-vacuum", "--protocol", "prepared", "--client", str(WRITERS), "--jobs", "1",
                "--rate", str(rate), "--time", str(round(seconds)), "--file", script,
                "--log", "--log-prefix", Path(directory, "log"), dsn,
            ]
        )  # fmt: skip
        counted = list(first)
        committed = {}
        for line in next(Path(directory).glob("log.*")).read_text().splitlines():
            writer, _, _, _, epoch_s, epoch_us, *_ = map(int, line.split())
            counted[writer] += 1
            committed[writer, counted[writer]] = (epoch_s * 1_000_000 + epoch_us) * 1_000
    return committed
