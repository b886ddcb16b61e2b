/* A clock that a test moves: what the C library says of the time of day, plus an offset for this process.
 *
 * CLOCK_OFFSETS names a file of SIZE pairs of 64-bit numbers, a pid and seconds. Pid 0 stands for every process that has
 * no pair of its own. Clocks that only measure, such as CLOCK_MONOTONIC, are left alone, as they are by a kernel.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SIZE 64

struct pair {
    int64_t pid, seconds;
};

static const volatile struct pair *pairs;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_OFFSETS");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *at = mmap(NULL, SIZE * sizeof(struct pair), PROT_READ, MAP_SHARED, fd, 0);
        pairs = at == MAP_FAILED ? NULL : at;
        close(fd);
    }
}

static int64_t offset(void) {
    int64_t everybody = 0, me = getpid();
    for (int i = 0; pairs && i < SIZE; i++) {
        if (pairs[i].pid == me)
            return pairs[i].seconds;
        if (pairs[i].pid == 0 && pairs[i].seconds)
            everybody = pairs[i].seconds;
    }
    return everybody;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, now);
    if (answer == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return answer;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    int answer = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return answer;
}

time_t time(time_t *at) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (at)
        *at = precise.tv_sec;
    return precise.tv_sec;
}
