/* A disk that fails when asked to, for processes started with LD_PRELOAD.

   The calls that write (open, write, fsync, rename, mkdir, truncate and their
   variants) are counted for paths below one folder; call number `nth` of one
   kind, or every call from it on, fails with an errno of the caller's choice.
   Armed from Python after the fork: ctypes.CDLL(None).disk_arm(...).

   What libc does inside itself (fwrite's write, fopen's open) does not come
   through here, so the stdio functions are wrapped as well.  */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, READ_OPEN, WRITE, FSYNC, RENAME, MKDIR, TRUNCATE, KINDS };
enum { DESCRIPTORS = 1 << 16 };

static char folder[PATH_MAX];
static size_t folder_length;
static int fails_kind = -1, fails_errno, fails_forever;
static long fails_nth;
static atomic_long counts[KINDS];
static atomic_int failures;
static char failed_paths[16 * PATH_MAX]; /* a line each */
static char paths[DESCRIPTORS][256]; /* the ends of the paths, "" = not ours */

/* Args: the folder; the kind (-1: counts only); the first call that fails,
   from 0; its errno; whether all later ones fail too.  */
void disk_arm(const char *below, int kind, long nth, int error, int forever) {
  snprintf(folder, sizeof folder, "%s", below);
  folder_length = strlen(folder);
  for (int each = 0; each < KINDS; each++) counts[each] = 0;
  failures = 0;
  failed_paths[0] = 0;
  fails_nth = nth, fails_errno = error, fails_forever = forever;
  fails_kind = kind;
}
long disk_count(int kind) { return counts[kind]; }
int disk_failures(void) { return failures; }
const char *disk_failed_paths(void) { return failed_paths; }

/* The absolute path, if it is below the folder; else NULL.  */
static const char *ours(int at, const char *path, char *buffer) {
  if (!folder_length || !path) return NULL;
  if (path[0] != '/') {
    char link[64], base[PATH_MAX];
    if (at == AT_FDCWD)
      snprintf(link, sizeof link, "/proc/self/cwd");
    else
      snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t size = readlink(link, base, sizeof base - 1);
    if (size < 0) return NULL;
    base[size] = 0;
    if (snprintf(buffer, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
      return NULL;
    path = buffer;
  }
  if (strncmp(path, folder, folder_length)) return NULL;
  char next = path[folder_length];
  return next == 0 || next == '/' ? path : NULL;
}

/* Counts a call; 1, with errno set, if it is to fail.  */
static int fails(int kind, const char *path) {
  if (!path || !path[0]) return 0;
  long number = atomic_fetch_add(&counts[kind], 1);
  if (kind != fails_kind || number < fails_nth) return 0;
  if (!fails_forever && number != fails_nth) return 0;
  atomic_fetch_add(&failures, 1);
  size_t used = strlen(failed_paths);
  snprintf(failed_paths + used, sizeof failed_paths - used, "%s\n", path);
  errno = fails_errno;
  return 1;
}

static const char *path_of(int descriptor) {
  if (descriptor < 0 || descriptor >= DESCRIPTORS) return NULL;
  return paths[descriptor];
}

static int opened(int descriptor, const char *path) {
  if (descriptor >= 0 && descriptor < DESCRIPTORS) {
    size_t length = path ? strlen(path) : 0;
    const char *end = length > 255 ? path + length - 255 : path;
    snprintf(paths[descriptor], 256, "%s", path ? end : "");
  }
  return descriptor;
}

#define REAL(result, name, ...)                          \
  static result (*real)(__VA_ARGS__);                    \
  if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int kind_of(int flags) {
  int writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT;
  return writes ? OPEN : READ_OPEN;
}

#define OPENS(name)                                            \
  int name(const char *path, int flags, ...) {                 \
    REAL(int, name, const char *, int, ...);                   \
    va_list rest;                                              \
    va_start(rest, flags);                                     \
    int mode = va_arg(rest, int);                              \
    va_end(rest);                                              \
    char buffer[PATH_MAX];                                     \
    const char *found = ours(AT_FDCWD, path, buffer);          \
    if (fails(kind_of(flags), found)) return -1;               \
    return opened(real(path, flags, mode), found);             \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                         \
  int name(int at, const char *path, int flags, ...) {         \
    REAL(int, name, int, const char *, int, ...);              \
    va_list rest;                                              \
    va_start(rest, flags);                                     \
    int mode = va_arg(rest, int);                              \
    va_end(rest);                                              \
    char buffer[PATH_MAX];                                     \
    const char *found = ours(at, path, buffer);                \
    if (fails(kind_of(flags), found)) return -1;               \
    return opened(real(at, path, flags, mode), found);         \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

#define CREATES(name)                                          \
  int name(const char *path, mode_t mode) {                    \
    REAL(int, name, const char *, mode_t);                     \
    char buffer[PATH_MAX];                                     \
    const char *found = ours(AT_FDCWD, path, buffer);          \
    if (fails(OPEN, found)) return -1;                         \
    return opened(real(path, mode), found);                    \
  }
CREATES(creat)
CREATES(creat64)

#define FOPENS(name)                                           \
  FILE *name(const char *path, const char *mode) {             \
    REAL(FILE *, name, const char *, const char *);            \
    char buffer[PATH_MAX];                                     \
    const char *found = ours(AT_FDCWD, path, buffer);          \
    int reads = mode[0] == 'r' && !strchr(mode, '+');          \
    if (fails(reads ? READ_OPEN : OPEN, found)) return NULL;   \
    FILE *file = real(path, mode);                             \
    if (file) opened(fileno(file), found);                     \
    return file;                                               \
  }
FOPENS(fopen)
FOPENS(fopen64)

int close(int descriptor) {
  REAL(int, close, int);
  opened(descriptor, NULL);
  return real(descriptor);
}
int fclose(FILE *file) {
  REAL(int, fclose, FILE *);
  opened(fileno(file), NULL);
  return real(file);
}

#define ON_DESCRIPTOR(result, name, kind, declared, given)     \
  result name declared {                                       \
    REAL(result, name, );                                      \
    return fails(kind, path_of(to)) ? -1 : real given;         \
  }
#undef REAL
#define REAL(result, name, ...)                                \
  static result (*real)();                                     \
  if (!real) real = (result (*)())dlsym(RTLD_NEXT, #name)

ON_DESCRIPTOR(ssize_t, write, WRITE, (int to, const void *data, size_t size),
              (to, data, size))
ON_DESCRIPTOR(ssize_t, pwrite, WRITE,
              (int to, const void *data, size_t size, off_t at),
              (to, data, size, at))
ON_DESCRIPTOR(ssize_t, pwrite64, WRITE,
              (int to, const void *data, size_t size, off64_t at),
              (to, data, size, at))
ON_DESCRIPTOR(ssize_t, writev, WRITE,
              (int to, const struct iovec *parts, int count),
              (to, parts, count))
ON_DESCRIPTOR(ssize_t, sendfile, WRITE,
              (int to, int from, off_t *at, size_t size), (to, from, at, size))
ON_DESCRIPTOR(ssize_t, sendfile64, WRITE,
              (int to, int from, off64_t *at, size_t size),
              (to, from, at, size))
ON_DESCRIPTOR(ssize_t, copy_file_range, WRITE,
              (int from, off64_t *from_at, int to, off64_t *to_at, size_t size,
               unsigned flags),
              (from, from_at, to, to_at, size, flags))
ON_DESCRIPTOR(int, fsync, FSYNC, (int to), (to))
ON_DESCRIPTOR(int, fdatasync, FSYNC, (int to), (to))
ON_DESCRIPTOR(int, ftruncate, TRUNCATE, (int to, off_t size), (to, size))
ON_DESCRIPTOR(int, ftruncate64, TRUNCATE, (int to, off64_t size), (to, size))

int posix_fallocate(int to, off_t at, off_t size) {
  REAL(int, posix_fallocate);
  return fails(TRUNCATE, path_of(to)) ? errno : real(to, at, size);
}
int posix_fallocate64(int to, off64_t at, off64_t size) {
  REAL(int, posix_fallocate64);
  return fails(TRUNCATE, path_of(to)) ? errno : real(to, at, size);
}
size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
  static size_t (*real)(const void *, size_t, size_t, FILE *);
  if (!real) real = dlsym(RTLD_NEXT, "fwrite");
  if (fails(WRITE, path_of(fileno(file)))) return 0;
  return real(data, size, count, file);
}

/* Renaming fails by where it goes to.  */
int rename(const char *from, const char *to) {
  REAL(int, rename);
  char buffer[PATH_MAX];
  return fails(RENAME, ours(AT_FDCWD, to, buffer)) ? -1 : real(from, to);
}
int renameat(int from_at, const char *from, int to_at, const char *to) {
  REAL(int, renameat);
  char buffer[PATH_MAX];
  if (fails(RENAME, ours(to_at, to, buffer))) return -1;
  return real(from_at, from, to_at, to);
}
int renameat2(int from_at, const char *from, int to_at, const char *to,
              unsigned flags) {
  REAL(int, renameat2);
  char buffer[PATH_MAX];
  if (fails(RENAME, ours(to_at, to, buffer))) return -1;
  return real(from_at, from, to_at, to, flags);
}
int mkdir(const char *path, mode_t mode) {
  REAL(int, mkdir);
  char buffer[PATH_MAX];
  return fails(MKDIR, ours(AT_FDCWD, path, buffer)) ? -1 : real(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
  REAL(int, mkdirat);
  char buffer[PATH_MAX];
  return fails(MKDIR, ours(at, path, buffer)) ? -1 : real(at, path, mode);
}
