/* A disk that keeps what was synced, for LD_PRELOAD.
 *
 * Of all below the folder POWER_ROOT, the folder POWER_DISK holds what a power cut leaves at least:
 *
 *     files/<inode>      a file's content at its last sync
 *     folders/<inode>    a folder's entries at its last sync, each as `<inode> <name>` and a null byte
 *
 * The strict reading of POSIX: a new, renamed or removed name is lost until its folder is synced. What stands below POWER_ROOT
 * when the first process starts is on the disk. An inode is not used again before the process ends.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[PATH_MAX];
static const char *disk;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_below(const char *path) {
    size_t length = strlen(root);
    return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int open_new(const char *kind, ino_t inode, char *target, char *temporary) {
    snprintf(target, PATH_MAX, "%s/%s/%lu", disk, kind, (unsigned long)inode);
    snprintf(temporary, PATH_MAX, "%s/%s-%d-%lu", disk, kind, (int)getpid(), (unsigned long)inode);
    return open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600);
}

static void put(int fd, const void *data, ssize_t length) {
    if (write(fd, data, length) != length) abort();
}

static void keep_file(int fd, ino_t inode) {
    char target[PATH_MAX], temporary[PATH_MAX], block[1 << 16], self[64];
    int to = open_new("files", inode, target, temporary), from = fd;
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY) {
        snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
        from = open(self, O_RDONLY); /* not for SQLite's files, whose locks the close would drop */
    }
    ssize_t got;
    for (off_t at = 0; (got = pread(from, block, sizeof block, at)) > 0; at += got) put(to, block, got);
    close(to);
    if (from != fd) close(from);
    if (got < 0 || NEXT(rename)(temporary, target)) abort();
}

static void keep_folder(const char *path, ino_t inode) {
    char target[PATH_MAX], temporary[PATH_MAX], line[NAME_MAX + 32];
    int to = open_new("folders", inode, target, temporary);
    DIR *folder = opendir(path);
    for (struct dirent *entry; (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            put(to, line, 1 + sprintf(line, "%lu %s", (unsigned long)entry->d_ino, entry->d_name));
    closedir(folder);
    close(to);
    if (NEXT(rename)(temporary, target)) abort();
}

static void keep(int fd) {
    char self[64], path[PATH_MAX];
    struct stat found;
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(self, path, sizeof path - 1);
    if (length < 0 || fstat(fd, &found)) return;
    path[length] = 0;
    if (!is_below(path)) return;
    if (S_ISDIR(found.st_mode)) keep_folder(path, found.st_ino);
    if (S_ISREG(found.st_mode)) keep_file(fd, found.st_ino);
}

static int keep_first(const char *path, const struct stat *found, int kind, struct FTW *walk) {
    (void)found, (void)kind, (void)walk;
    int fd = open(path, O_RDONLY);
    keep(fd);
    return close(fd);
}

__attribute__((constructor)) static void begin(void) {
    char path[PATH_MAX];
    struct stat found;
    disk = getenv("POWER_DISK");
    if (!disk || !getenv("POWER_ROOT") || !realpath(getenv("POWER_ROOT"), root) || stat(root, &found)) {
        root[0] = 0;
        return;
    }
    snprintf(path, sizeof path, "%s/folders/%lu", disk, (unsigned long)found.st_ino);
    if (access(path, F_OK)) nftw(root, keep_first, 16, FTW_PHYS);
}

int fsync(int fd) {
    int result = NEXT(fsync)(fd);
    if (!result) keep(fd);
    return result;
}

int fdatasync(int fd) {
    int result = NEXT(fdatasync)(fd);
    if (!result) keep(fd);
    return result;
}

/* The last name of a file is about to go: keep its inode from being used again. */
static void hold(int folder, const char *path) {
    struct stat found;
    if (root[0] && !fstatat(folder, path, &found, AT_SYMLINK_NOFOLLOW) && S_ISREG(found.st_mode))
        openat(folder, path, O_RDONLY | O_CLOEXEC);
}

int unlink(const char *path) {
    hold(AT_FDCWD, path);
    return NEXT(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    hold(folder, path);
    return NEXT(unlinkat)(folder, path, flags);
}

int rename(const char *from, const char *to) {
    hold(AT_FDCWD, to);
    return NEXT(rename)(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    hold(to_folder, to);
    return NEXT(renameat)(from_folder, from, to_folder, to);
}
