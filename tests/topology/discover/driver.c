// A stand-in for the NVIDIA driver's library, in NVML's own ABI. The file that STAND_IN names says what it is like:
// one line for each GPU, `gpu KEY=VALUE ...`, and lines `init=CODE`, `count=CODE`, `nvlink=0`, `xid=NUMBER gpu=INDEX`.
// -DFABRIC=4, 3 or 2 is the newest fabric structure that this driver knows; 0 is a driver without those functions, and
// -1 one that cannot even count.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef FABRIC
#define FABRIC 4
#endif

enum { OK = 0, UNSUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15, VERSION = 25 };

typedef struct {
    char uuid[96], pci[32], name[96], cliques[256];
    unsigned char cluster[16];
    unsigned clique, state, status, health, summary, action;
    int mig, lost, gone, ecc, uncorrected, rows, pending, failed;
} gpu_t;

static gpu_t gpus[16];
static int count, init_code, count_code, nvlink, xid_number, xid_gpu, told;

static int has(const char *word, const char *key) {
    size_t length = strlen(key);
    return !strncmp(word, key, length) && word[length] == '=';
}

static void set(gpu_t *gpu, const char *word) {
    const char *value = strchr(word, '=');
    if (!value) return;
    value++;
    if (has(word, "uuid")) snprintf(gpu->uuid, sizeof gpu->uuid, "%s", value);
    if (has(word, "pci")) snprintf(gpu->pci, sizeof gpu->pci, "%s", value);
    if (has(word, "name")) snprintf(gpu->name, sizeof gpu->name, "%s", value);
    if (has(word, "cliques")) snprintf(gpu->cliques, sizeof gpu->cliques, "%s", value);
    if (has(word, "cluster"))
        for (int i = 0; i < 16; i++) {
            unsigned byte = 0;
            sscanf(value + 2 * i, "%2x", &byte);
            gpu->cluster[i] = (unsigned char)byte;
        }
    unsigned number = (unsigned)strtoul(value, NULL, 0);
    if (has(word, "clique")) gpu->clique = number;
    if (has(word, "state")) gpu->state = number;
    if (has(word, "status")) gpu->status = number;
    if (has(word, "health")) gpu->health = number;
    if (has(word, "summary")) gpu->summary = number;
    if (has(word, "action")) gpu->action = number;
    if (has(word, "mig")) gpu->mig = (int)number;
    if (has(word, "lost")) gpu->lost = (int)number;  // the handle cannot be had
    if (has(word, "gone")) gpu->gone = (int)number;  // the handle can, but nothing else
    if (has(word, "ecc")) gpu->ecc = (int)number;
    if (has(word, "uncorrected")) gpu->uncorrected = (int)number;
    if (has(word, "rows")) gpu->rows = (int)number;
    if (has(word, "pending")) gpu->pending = (int)number;
    if (has(word, "failed")) gpu->failed = (int)number;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    count = init_code = count_code = xid_number = told = 0;
    nvlink = 1;
    memset(gpus, 0, sizeof gpus);
    FILE *file = fopen(getenv("STAND_IN"), "r");
    if (!file) return 999;
    char line[1024];
    while (fgets(line, sizeof line, file)) {
        char *word = strtok(line, " \n");
        if (!word) continue;
        if (!strcmp(word, "gpu")) {
            while ((word = strtok(NULL, " \n"))) set(&gpus[count], word);
            count++;
        } else if (has(word, "init")) init_code = atoi(word + 5);
        else if (has(word, "count")) count_code = atoi(word + 6);
        else if (has(word, "nvlink")) nvlink = atoi(word + 7);
        else if (has(word, "xid")) {
            xid_number = atoi(word + 4);
            word = strtok(NULL, " \n");
            xid_gpu = word ? atoi(word + 4) : -1;
        }
    }
    fclose(file);
    return init_code;
}

int nvmlShutdown(void) { return OK; }

#if FABRIC >= 0
int nvmlDeviceGetCount_v2(unsigned *number) {
    *number = (unsigned)count;
    return count_code;
}
#endif

int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu_t **device) {
    if (index >= (unsigned)count) return NOT_FOUND;
    if (gpus[index].lost) return LOST;
    *device = &gpus[index];
    return OK;
}

int nvmlDeviceGetUUID(gpu_t *gpu, char *uuid, unsigned length) {
    if (gpu->gone) return LOST;
    snprintf(uuid, length, "%s", gpu->uuid);
    return OK;
}

int nvmlDeviceGetName(gpu_t *gpu, char *name, unsigned length) {
    if (gpu->gone) return LOST;
    snprintf(name, length, "%s", gpu->name);
    for (char *c = name; *c; c++)
        if (*c == '_') *c = ' ';
    return OK;
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, pci_device, pci_subsystem;
    char address[32];
} pci_t;

int nvmlDeviceGetPciInfo_v3(gpu_t *gpu, pci_t *pci) {
    if (gpu->gone) return LOST;
    memset(pci, 0, sizeof *pci);
    snprintf(pci->address, sizeof pci->address, "%s", gpu->pci);
    return OK;
}

int nvmlDeviceGetEccMode(gpu_t *gpu, unsigned *current, unsigned *pending) {
    if (gpu->gone) return LOST;
    if (gpu->ecc < 0) return UNSUPPORTED;
    *current = *pending = (unsigned)gpu->ecc;
    return OK;
}

int nvmlDeviceGetTotalEccErrors(gpu_t *gpu, unsigned kind, unsigned counter, unsigned long long *errors) {
    if (gpu->gone) return LOST;
    if (gpu->ecc <= 0) return UNSUPPORTED;
    *errors = kind == 1 && counter == 0 ? (unsigned long long)gpu->uncorrected : 0;
    return OK;
}

int nvmlDeviceGetRemappedRows(gpu_t *gpu, unsigned *right, unsigned *wrong, unsigned *pending, unsigned *failed) {
    if (gpu->gone) return LOST;
    if (!gpu->rows) return UNSUPPORTED;
    *right = *wrong = 0;
    *pending = (unsigned)gpu->pending;
    *failed = (unsigned)gpu->failed;
    return OK;
}

typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type, code;
    union { double real; unsigned number; unsigned long long wide; } value;
} field_t;

int nvmlDeviceGetFieldValues(gpu_t *gpu, int number, field_t *values) {
    if (gpu->gone) return LOST;
    for (int i = 0; i < number; i++) {
        values[i].code = values[i].field == 230 ? OK : UNSUPPORTED;
        values[i].type = 1;
        values[i].value.number = gpu->action;
    }
    return OK;
}

int nvmlDeviceGetMigMode(gpu_t *gpu, unsigned *current, unsigned *pending) {
    if (gpu->mig < 0) return UNSUPPORTED;
    *current = *pending = (unsigned)gpu->mig;
    return OK;
}

int nvmlDeviceGetP2PStatus(gpu_t *one, gpu_t *other, int kind, unsigned *status) {
    if (one->gone || other->gone) return LOST;
    *status = kind == 2 && nvlink ? 0 : 5;
    return OK;
}

#if FABRIC >= 2
typedef struct {
    unsigned version;
    unsigned char cluster[16];
    unsigned status, clique, state, health;
    unsigned char summary;
} fabric_t;

int nvmlDeviceGetGpuFabricInfoV(gpu_t *gpu, fabric_t *info) {
    if (gpu->gone) return LOST;
    int version = info->version == 0x02000024 ? 2 : info->version == 0x03000028 ? 3 : 99;
    if (version > FABRIC) return VERSION;
    memcpy(info->cluster, gpu->cluster, 16);
    info->status = gpu->status;
    info->clique = gpu->clique;
    info->state = gpu->state;
    info->health = gpu->health;
    if (version == 3) info->summary = (unsigned char)gpu->summary;
    return OK;
}
#endif

#if FABRIC >= 4
typedef struct {
    unsigned char cluster[16];
    unsigned status;
    struct { unsigned char kind; unsigned id; } cliques[64];
    unsigned number;
    unsigned char state;
    unsigned health;
    unsigned char summary;
} fabric4_t;

int nvmlDeviceGetGpuFabricInfo_v4(gpu_t *gpu, fabric4_t *info) {
    if (gpu->gone) return LOST;
    memset(info, 0, sizeof *info);
    memcpy(info->cluster, gpu->cluster, 16);
    info->status = gpu->status;
    info->state = (unsigned char)gpu->state;
    info->health = gpu->health;
    info->summary = (unsigned char)gpu->summary;
    if (!*gpu->cliques) {
        info->cliques[0].id = gpu->clique;
        info->number = 1;
    }
    for (char *at = gpu->cliques; *at; info->number++) {  // KIND:ID,KIND:ID
        info->cliques[info->number].kind = (unsigned char)strtoul(at, &at, 10);
        info->cliques[info->number].id = (unsigned)strtoul(at + 1, &at, 10);
        if (*at == ',') at++;
    }
    return OK;
}
#endif

typedef struct {
    gpu_t *device;
    unsigned long long kind, data;
    unsigned instance, compute;
} event_t;

int nvmlEventSetCreate(void **events) {
    *events = &told;
    return OK;
}

int nvmlDeviceRegisterEvents(gpu_t *gpu, unsigned long long kinds, void *events) {
    (void)events;
    return gpu->gone ? LOST : kinds == 8 ? OK : UNSUPPORTED;
}

int nvmlEventSetWait_v2(void *events, event_t *event, unsigned milliseconds) {
    (void)events;
    if (!xid_number || told++) {
        usleep(milliseconds * 1000);
        return TIMEOUT;
    }
    if (xid_gpu < 0) return LOST;
    event->device = &gpus[xid_gpu];
    event->kind = 8;
    event->data = (unsigned long long)xid_number;
    return OK;
}

int nvmlEventSetFree(void *events) {
    (void)events;
    return OK;
}
