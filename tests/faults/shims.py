"""Libraries that stand between a program and libc, compiled when a test needs them: a full disk, a clock that jumps."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from replicator.demo.servers import Server

_FULL_DISK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* No room for files under base/ to grow, as long as the flag file exists. */
static int is_full(int fd, off_t end)
{
    char link[64], path[4096];
    struct stat found;
    const char *flag = getenv("FULL_DISK_FLAG");
    ssize_t length;
    if (!flag || access(flag, F_OK) != 0 || fstat(fd, &found) != 0 || end <= found.st_size) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, "/data/base/") != NULL;
}
#define FULL do { errno = ENOSPC; return -1; } while (0)

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite");
    if (is_full(fd, at + size)) FULL;
    return real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return pwrite(fd, data, size, at); }

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
{
    static ssize_t (*real)(int, const struct iovec *, int, off_t);
    off_t size = 0;
    if (!real) real = dlsym(RTLD_NEXT, "pwritev");
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    if (is_full(fd, at + size)) FULL;
    return real(fd, parts, count, at);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) { return pwritev(fd, parts, count, at); }

int posix_fallocate(int fd, off_t at, off_t size)
{
    static int (*real)(int, off_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "posix_fallocate");
    return is_full(fd, at + size) ? ENOSPC : real(fd, at, size);
}
int posix_fallocate64(int fd, off_t at, off_t size) { return posix_fallocate(fd, at, size); }
"""

_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

/* CLOCK_REALTIME plus the seconds that the file holds. */
static long offset(void)
{
    const char *path = getenv("CLOCK_OFFSET_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    long seconds = 0;
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    int result;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    result = real(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return result;
}
int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec found;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (out) *out = found.tv_sec;
    return found.tv_sec;
}
"""


def compile_shim(name: str, directory: Path) -> Path:
    """The shim ``full_disk`` or ``clock`` as a shared library that any user may load."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler: there is no other way to fill a disk or to move a clock in a test")
    source, library = directory / f"{name}.c", directory / f"{name}.so"
    source.write_text({"full_disk": _FULL_DISK, "clock": _CLOCK}[name])
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    library.chmod(0o755)
    return library


class ShimmedServer(Server):
    """A server with a library preloaded."""

    preload: Mapping[str, str] = {}

    def _popen(self, command: list[str | Path], *, stdin: int, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
        if Path(command[0]).name == "postgres":
            command = ["/usr/bin/env", *(f"{name}={value}" for name, value in self.preload.items()), *command]
        return super()._popen(command, stdin=stdin, output=output)


class Disk:
    """The disk of a server that can be full. ``directory`` must be readable for the server's user."""

    def __init__(self, directory: Path) -> None:
        self.flag = directory / "full"
        library = compile_shim("full_disk", directory)
        self.server_class: Any = type(
            "FullDiskServer", (ShimmedServer,),
            {"preload": {"LD_PRELOAD": str(library), "FULL_DISK_FLAG": str(self.flag)}},
        )  # fmt: skip

    def fill(self) -> None:
        self.flag.touch()

    def make_room(self) -> None:
        self.flag.unlink()
