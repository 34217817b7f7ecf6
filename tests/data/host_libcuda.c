/* What prefork.device_memory asks of CUDA's driver, over the host's memory: same names, same arguments, same rules.
 *
 * FAIL=cuName:code makes one function fail. Memory can be opened by other processes, once each, until it is freed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct { char reserved[64]; } Handle; /* CUipcMemHandle */
static struct { uint64_t address; size_t size; int fd; } mine, theirs;
static int ready, current;

static int fails(const char *name) {
  const char *wanted = getenv("FAIL");
  size_t length = strlen(name);
  return wanted && !strncmp(wanted, name, length) && wanted[length] == ':' ? atoi(wanted + length + 1) : 0;
}
#define ENTER(needs) do { int code = fails(__func__); if (code) return code; if (!(needs)) return 201; } while (0)

int cuInit(unsigned flags) { ENTER(flags == 0); ready = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { ENTER(ready && ordinal == 0); *device = 7; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
  ENTER(device == 7);
  snprintf(name, length, "Paper GPU");
  return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  ENTER(device == 7);
  *value = attribute == 20 ? (getenv("EXCLUSIVE") ? 3 : 0) : attribute == 125 ? !getenv("NO_IPC") :
           attribute == 133 ? !!getenv("MPS") : -1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { ENTER(device == 7); *context = &ready; return 0; }
int cuCtxSetCurrent(void *context) { ENTER(context == &ready); current = 1; return 0; }
int cuCtxSynchronize(void) { ENTER(current); return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
  ENTER(current && size % (2 << 20) == 0);
  mine.fd = memfd_create("host-libcuda", 0);
  if (ftruncate(mine.fd, size)) return 2;
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, mine.fd, 0);
  if (memory == MAP_FAILED) return 2;
  *address = mine.address = (uint64_t)memory;
  mine.size = size;
  return 0;
}
int cuMemcpyHtoD_v2(uint64_t target, const void *source, size_t size) {
  ENTER(current);
  if (target < mine.address || target + size > mine.address + mine.size) return 1;
  memcpy((void *)target, source, size);
  return 0;
}
int cuMemFree_v2(uint64_t address) {
  ENTER(current);
  if (address != mine.address) return 1;
  munmap((void *)address, mine.size);
  close(mine.fd);
  mine.address = 0;
  return 0;
}
int cuIpcGetMemHandle(Handle *handle, uint64_t address) {
  ENTER(current);
  if (!address || address != mine.address) return 1;
  memset(handle->reserved, '.', 64);
  snprintf(handle->reserved, 64, "%d %d %zu", getpid(), mine.fd, mine.size);
  handle->reserved[63] = '!';
  return 0;
}
int cuIpcOpenMemHandle_v2(uint64_t *address, Handle handle, unsigned flags) {
  ENTER(current);
  int pid, fd;
  if (flags != 1 || handle.reserved[63] != '!') return 1;
  if (sscanf(handle.reserved, "%d %d %zu", &pid, &fd, &theirs.size) != 3) return 400;
  if (pid == getpid()) return 201;
  if (theirs.address) return 208;
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
  theirs.fd = open(path, O_RDWR);
  if (theirs.fd < 0) return 1;
  void *memory = mmap(NULL, theirs.size, PROT_READ | PROT_WRITE, MAP_SHARED, theirs.fd, 0);
  close(theirs.fd);
  if (memory == MAP_FAILED) return 205;
  *address = theirs.address = (uint64_t)memory;
  return 0;
}
int cuIpcCloseMemHandle(uint64_t address) {
  ENTER(current);
  if (!address || address != theirs.address) return 1;
  munmap((void *)address, theirs.size);
  theirs.address = 0;
  return 0;
}

static const struct { int code; const char *name, *text; } codes[] = {
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},     {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {205, "CUDA_ERROR_MAP_FAILED", "mapping of buffer object failed"},
    {208, "CUDA_ERROR_ALREADY_MAPPED", "resource already mapped"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};
static int look_up(int code, const char **text, int named) {
  for (unsigned i = 0; i < sizeof codes / sizeof *codes; i++)
    if (codes[i].code == code) return *text = named ? codes[i].name : codes[i].text, 0;
  *text = NULL;
  return 1;
}
int cuGetErrorName(int code, const char **text) { return look_up(code, text, 1); }
int cuGetErrorString(int code, const char **text) { return look_up(code, text, 0); }
