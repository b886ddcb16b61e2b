/* Sets the wall clock of one node ahead: of its agent, which has --node=NAME on its command line, and of the ranks there,
   whose TLAUNCH_SLOT begins with NAME/. The monotonic clock is left alone, as when somebody sets a real one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char slots[128];
static long ahead;
static int agent;

__attribute__((constructor)) static void begin(void) {
    const char *node = getenv("CLOCK_NODE"), *seconds = getenv("CLOCK_AHEAD");
    char line[4096], option[128];
    if (!node || !seconds) return;
    ahead = atol(seconds);
    snprintf(slots, sizeof slots, "%s/", node);
    int length = snprintf(option, sizeof option, "--node=%s", node), file = open("/proc/self/cmdline", O_RDONLY);
    ssize_t size = file < 0 ? 0 : read(file, line, sizeof line);
    for (char *word = line; word < line + size; word += strlen(word) + 1)
        agent |= word + length < line + size && !strcmp(word, option);
    if (file >= 0) close(file);
}

static long shift(void) {
    const char *slot = ahead ? getenv("TLAUNCH_SLOT") : NULL;
    return agent || (slot && !strncmp(slot, slots, strlen(slots))) ? ahead : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
    now->tv_sec = found.tv_sec, now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    return out ? (*out = found.tv_sec) : found.tv_sec;
}
