/* LD_PRELOAD: writes down what has reached the disk, refuses writes while the disk is said to be full, and lets syncs
   wait while it is said to be slow.

   After each successful fsync or fdatasync of something under NIGHTJAR_SHIM_HOME a line goes to NIGHTJAR_SHIM_LOG:
     F <tab> device:inode <tab> length before the call <tab> path
     D <tab> device:inode <tab> names in it before the call, each followed by "/" <tab> path
   While the first byte of the file NIGHTJAR_SHIM_SWITCH is "1", writes to files under that home fail with ENOSPC. Each
   of these syncs waits first for as many times 10 ms as its second byte is beyond "0". */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int log_fd = -1;
static const char *home;
static size_t home_length;
static volatile const char *disk;

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);

__attribute__((constructor)) static void begin(void) {
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_write = dlsym(RTLD_NEXT, "write");
  real_writev = dlsym(RTLD_NEXT, "writev");
  real_pwrite = dlsym(RTLD_NEXT, "pwrite");
  real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
  const char *log_path = getenv("NIGHTJAR_SHIM_LOG"), *switch_path = getenv("NIGHTJAR_SHIM_SWITCH");
  home = getenv("NIGHTJAR_SHIM_HOME");
  if (!home || !log_path || !switch_path) return;
  home = strdup(home); /* a server that writes its title over its environment takes the value along */
  if (!home) return;
  home_length = strlen(home);
  int fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 800); /* out of the way of programs that count on small numbers */
  if (log_fd >= 0) close(fd); else log_fd = fd;
  fd = open(switch_path, O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    void *page = mmap(NULL, 2, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) disk = page;
    close(fd);
  }
}

/* The path of a descriptor when it lies under the home, else 0. */
static int path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return !strncmp(path, home, home_length) && path[home_length] == '/';
}

/* The line to log once the call succeeds, or NULL; to be freed. */
static char *describe(int fd) {
  if (log_fd < 0) return NULL;
  int saved = errno;
  char path[PATH_MAX];
  struct stat found;
  char *line = NULL;
  if (!fstat(fd, &found) && (path_of(fd, path) || (S_ISDIR(found.st_mode) && !strcmp(path, home)))) {
    if (S_ISREG(found.st_mode)) {
      if (asprintf(&line, "F\t%llu:%llu\t%lld\t%s\n", (unsigned long long)found.st_dev,
                   (unsigned long long)found.st_ino, (long long)found.st_size, path) < 0) line = NULL;
    } else if (S_ISDIR(found.st_mode)) {
      size_t length = 0;
      FILE *out = open_memstream(&line, &length);
      fprintf(out, "D\t%llu:%llu\t", (unsigned long long)found.st_dev, (unsigned long long)found.st_ino);
      DIR *folder = opendir(path);
      for (struct dirent *one; folder && (one = readdir(folder));) fprintf(out, "%s/", one->d_name);
      if (folder) closedir(folder);
      fprintf(out, "\t%s\n", path);
      fclose(out);
    }
  }
  errno = saved;
  return line;
}

static int synced(int result, char *line) {
  int saved = errno;
  if (line && result == 0) {
    long written = syscall(SYS_write, log_fd, line, strlen(line));
    (void)written;
  }
  free(line);
  errno = saved;
  return result;
}

static void wait_for_it(const char *line) {
  if (line && disk && disk[1] > '0') usleep((disk[1] - '0') * 10000);
}

int fsync(int fd) {
  char *line = describe(fd);
  wait_for_it(line);
  return synced(real_fsync(fd), line);
}

int fdatasync(int fd) {
  char *line = describe(fd);
  wait_for_it(line);
  return synced(real_fdatasync(fd), line);
}

static int is_refused(int fd) {
  if (!disk || disk[0] != '1') return 0;
  char path[PATH_MAX];
  struct stat found;
  if (fstat(fd, &found) || !S_ISREG(found.st_mode) || !path_of(fd, path)) return 0;
  errno = ENOSPC;
  return 1;
}

ssize_t write(int fd, const void *data, size_t size) { return is_refused(fd) ? -1 : real_write(fd, data, size); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
  return is_refused(fd) ? -1 : real_writev(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  return is_refused(fd) ? -1 : real_pwrite(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  return is_refused(fd) ? -1 : real_pwrite64(fd, data, size, at);
}
