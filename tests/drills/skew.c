// Preloaded into a node's processes: Python's wall clock is off by $SKEW_S seconds, nobody else's clock.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    Dl_info caller;
    const char *skew = getenv("SKEW_S");
    if (failed || clock != CLOCK_REALTIME || !skew || !dladdr(__builtin_return_address(0), &caller))
        return failed;
    const char *slash = strrchr(caller.dli_fname, '/');
    const char *name = slash ? slash + 1 : caller.dli_fname;
    if (!strncmp(name, "python", 6) || !strncmp(name, "libpython", 9)) now->tv_sec += atol(skew);
    return 0;
}
