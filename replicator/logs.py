"""Structured logs on stderr: UTC times, no passwords, and of an exception its place but no foreign message."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from replicator.errors import ReplicatorError
from replicator.model.printable import printable, printable_json

LogFormat = Literal["console", "json"]

_HIDDEN: Final = "***"
# scheme://user:password@host. Greedy to the last `@` of the word: people forget to percent-encode `@`,
# `/`, and hiding too much is the better mistake.
_URI_PASSWORD: Final = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)\S*(?=@)", re.IGNORECASE)
# password=…, "password": "…", PGPASSWORD=…, ?password=…&: the value is quoted (quotes inside escaped with a
# backslash, as libpq reads them) or runs to the next separator.
_SECRET_NAME: Final = re.compile(r"password|passwd|pwd|secret", re.IGNORECASE)
_KEYWORD_PASSWORD: Final = re.compile(
    rf"""(?P<head>(?:{_SECRET_NAME.pattern})[\w-]*["']?\s*[=:]\s*)"""
    r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s&,;'")\]}]+)""",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """``text`` with the password of anything that looks like a DSN replaced by ``***``."""
    if "://" in text:
        text = _URI_PASSWORD.sub(rf"\g<head>{_HIDDEN}", text)
    return _KEYWORD_PASSWORD.sub(rf"\g<head>{_HIDDEN}", text)


class _Stderr:
    """``sys.stderr`` as it is at the time of writing: a progress bar or a caller may have put another in place."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure(format: LogFormat = "console", verbose: bool = False) -> None:
    """Send all logs, the standard library's included, to stderr.

    Args:
        format: ``console`` for people (coloured on a terminal), ``json`` for one object a line.
        verbose: show debug events too.
    """
    level = logging.DEBUG if verbose else logging.INFO
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, *_renderers(format)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())),
        # A cached logger would keep the format of an earlier call.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(format)],
            foreign_pre_chain=[*shared, _name_library],
        )
    )
    # Libraries speak only when something is wrong; their chatter is not ours to forward.
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING, force=True)
    threading.excepthook = _log_thread_end
    # It warns of every pipeline that an error ended; the errors themselves reach us, and some are cured.
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def _log_thread_end(args: threading.ExceptHookArgs) -> None:
    """An error that ends a thread: Python's own hook prints its message, and with it values."""
    if args.exc_value is not None and args.exc_type is not SystemExit:
        get_logger("threads").error("a thread ended", kind=args.exc_type.__name__, exc_info=args.exc_value)


def get_logger(name: str) -> FilteringBoundLogger:
    """The logger of the module ``name``, which stands in every event as ``module``."""
    return cast(FilteringBoundLogger, structlog.get_logger(module=name.removeprefix("replicator.")))


def trace(exc: BaseException) -> Iterator[str]:
    """Where it was raised, cause first: frames and classes. Messages of our own errors only: others quote values."""
    cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if cause is not None:
        yield from trace(cause)
    for frame in traceback.extract_tb(exc.__traceback__):
        yield f"  {frame.filename}:{frame.lineno} in {frame.name}"
    yield _told(exc)


def _told(exc: BaseException) -> str:
    message = f": {printable(exc.message)}" if isinstance(exc, ReplicatorError) else ""
    return f"{type(exc).__name__}{message}"


def _renderers(format: LogFormat) -> list[Processor]:
    # Exceptions become text first, so that redaction sees their messages too.
    head: list[Processor] = [_trace_exception, _redact_event]
    if format == "json":
        return [*head, structlog.processors.JSONRenderer(_json, default=_redacted_repr)]
    return [*head, _printable_event, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)]


def _name_library(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**event, "module": event["_record"].name}


def _trace_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    exc = given[1] if isinstance(given, tuple) else given
    if isinstance(exc, BaseException):
        event["exception"] = "\n".join(trace(exc))
    return event


def _redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return _redact_mapping(event)


def _printable_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """One event on one line whatever names it holds; only a traceback has lines of its own."""
    return {
        key: printable(value) if isinstance(value, str) and key != "exception" else value
        for key, value in event.items()
    }


def _json(event: EventDict, **options: Any) -> str:
    return printable_json(json.dumps(event, ensure_ascii=False, **options))


def _redact_mapping(mapping: Mapping[str, object]) -> dict[str, object]:
    return {key: _HIDDEN if _SECRET_NAME.search(str(key)) else _redact_value(value) for key, value in mapping.items()}


def _redact_value(value: object) -> object:
    match value:
        case str():
            return redact(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {
                key: _HIDDEN if "password" in str(key).lower() else _redact_value(each) for key, each in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [_redact_value(each) for each in value]
        case BaseException():
            return redact(_told(value))
        case _:
            return redact(str(value))


def _redacted_repr(value: object) -> str:
    return redact(repr(value))
