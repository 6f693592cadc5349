"""Another wall clock for a process and its children, that can be set while they run; the monotonic clock stays.

As NTP does it to a computer without a clock of its own. A library of a few lines goes between the program and libc
(LD_PRELOAD); it adds the seconds that stand in a file which it has in its memory, so a step is seen by all at once.
"""

import mmap
import shutil
import struct
import subprocess

import pytest

C = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *shift_s;

static int now(clockid_t id, struct timespec *at) {
    static int (*libc)(clockid_t, struct timespec *);
    if (!libc) libc = dlsym(RTLD_NEXT, "clock_gettime");
    if (!shift_s) {
        int file = open(getenv("CLOCK_SHIFT_FILE"), O_RDONLY | O_CLOEXEC);
        void *page = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
        if (page == MAP_FAILED) abort();
        shift_s = page;
    }
    int status = libc(id, at);
    if (!status && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += *shift_s;
    return status;
}

int clock_gettime(clockid_t id, struct timespec *at) { return now(id, at); }

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec fine;
    int status = now(CLOCK_REALTIME, &fine);
    if (!status) { at->tv_sec = fine.tv_sec; at->tv_usec = fine.tv_nsec / 1000; }
    return status;
}

time_t time(time_t *at) {
    struct timespec fine;
    now(CLOCK_REALTIME, &fine);
    if (at) *at = fine.tv_sec;
    return fine.tv_sec;
}
"""


class ShiftedClock:
    """`environment` is what a process needs to live by this clock; `set(seconds)` puts it ahead of the real one."""

    def __init__(self, folder, shift_s):
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler for the library that shifts the clock")
        source, library, self._path = folder / "clock.c", folder / "clock.so", folder / "shift"
        source.write_text(C)
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        self._path.write_bytes(struct.pack("=q", int(shift_s)))
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(self._path)}

    def set(self, shift_s):
        with self._path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as page:
            page[:] = struct.pack("=q", int(shift_s))
