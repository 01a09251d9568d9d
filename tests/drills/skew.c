// Preloaded into a node's processes: the clock of the Python interpreter is off by $SKEW_S seconds, nobody else's.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    const char *skew = getenv("SKEW_S");
    void *python = dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    Dl_info caller, interpreter;
    if (failed || clock != CLOCK_REALTIME || !skew || !python) return failed;
    if (dladdr(__builtin_return_address(0), &caller) && dladdr(python, &interpreter) &&
        caller.dli_fbase == interpreter.dli_fbase)
        now->tv_sec += atol(skew);
    return 0;
}
