"""A steady writer in a process of its own: `python -m bench.pulse DSN WRITER PER_SECOND SECONDS`.

Each transaction is a sensor's report; when its commit has returned, the clock is read. Prints one line per transaction:
nanoseconds of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import sys
import time

import psycopg

TABLE = "pulses"
SCHEMA = f"""
CREATE TABLE public.{TABLE} (writer integer, seq integer, PRIMARY KEY (writer, seq));
"""
# A report of a sensor, and the pulse whose arrival is watched.
FUNCTION = f"""
CREATE FUNCTION public.bench_pulse(of_writer integer, number integer, unit uuid) RETURNS void LANGUAGE sql AS $$
    INSERT INTO public.sensor_readings (unit_id, temperature, humidity, battery, signal_strength, recorded_at, source)
    VALUES (unit, 3.5, 40, 90, -70, timestamptz '2025-01-01' + number * interval '1 second', 'ble');
    UPDATE public.units SET last_reading_at = now(), last_temperature = number % 500 WHERE id = unit;
    INSERT INTO public.{TABLE} VALUES (of_writer, number);
$$
"""


def main() -> None:
    dsn, writer, per_second, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    committed = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        units = conn.execute("SELECT array_agg(id ORDER BY id) FROM public.units").fetchone()
        assert units is not None
        mine = units[0][writer::8]  # no two writers wait for each other's rows
        first = conn.execute(f"SELECT coalesce(max(seq), 0) FROM public.{TABLE} WHERE writer = %s", [writer]).fetchone()
        assert first is not None
        start = time.monotonic()
        for number in range(int(per_second * seconds)):
            pause_s = start + number / per_second - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            sequence = first[0] + number + 1
            conn.execute("SELECT public.bench_pulse(%s, %s, %s)", [writer, sequence, mine[number % len(mine)]])
            committed.append((sequence, time.monotonic_ns()))
    print("\n".join(f"{sequence} {at}" for sequence, at in committed))


if __name__ == "__main__":
    main()
