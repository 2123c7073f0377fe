/* A disk that notes what it is told: a file system of two files that speaks the kernel's FUSE protocol.
 *
 *     block_device FOLDER IMAGE LOG
 *
 * mounts itself at FOLDER, says "ready" and serves until it is unmounted. FOLDER/disk is the content of IMAGE; a loop
 * device over it is a disk for any file system. The loop driver turns the block layer's FLUSH into an fsync, and knows
 * no FUA, so that the block layer makes a FLUSH of it as well. Nothing is cached on the way (no FUSE_WRITEBACK_CACHE,
 * FOPEN_DIRECT_IO): what the file system writes comes here in order. FOLDER/mark takes notes: a write to it goes into
 * the log and nowhere else.
 *
 * The log is entries in the order of arrival, of one thread: 24 bytes {u32 kind, u32 size, u64 position, u64 0},
 * little-endian, then `size` bytes. A WRITE is answered when its entry is in the log, so all WRITEs before a FLUSH had
 * been answered before it was: those, and only those, are what the disk has promised to keep.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ENTRY_WRITE = 1, ENTRY_FLUSH = 2, ENTRY_MARK = 3 };
enum { INODE_ROOT = FUSE_ROOT_ID, INODE_DISK, INODE_MARK };
enum { WRITE_BYTES_MAX = 1 << 20, REQUEST_BYTES_MAX = WRITE_BYTES_MAX + 8192 };

struct entry {
    uint32_t kind, size;
    uint64_t position, zero;
};

struct device {
    int fuse, image, log;
    uint64_t size;
};

static char request[REQUEST_BYTES_MAX], answer[WRITE_BYTES_MAX];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void log_entry(const struct device *device, uint32_t kind, uint64_t position, const void *data, uint32_t size)
{
    struct entry entry = {kind, size, position, 0};
    struct iovec parts[2] = {{&entry, sizeof entry}, {(void *)(uintptr_t)data, size}};
    if (writev(device->log, parts, 2) != (ssize_t)(sizeof entry + size))
        die("the log");
}

/* `code`: 0, or -errno. */
static void reply(const struct device *device, uint64_t unique, int code, const void *data, size_t size)
{
    struct fuse_out_header header = {(uint32_t)(sizeof header + size), code, unique};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)(uintptr_t)data, size}};
    if (writev(device->fuse, parts, size == 0 ? 1 : 2) < 0 && errno != ENOENT)
        die("a reply"); /* ENOENT: who asked is gone */
}

static struct fuse_attr attributes_of(const struct device *device, uint64_t inode)
{
    struct fuse_attr attributes = {.ino = inode, .nlink = 1, .blksize = 4096};
    attributes.mode = inode == INODE_ROOT ? S_IFDIR | 0755 : S_IFREG | 0644;
    attributes.size = inode == INODE_DISK ? device->size : 0;
    return attributes;
}

static void answer_init(const struct device *device, uint64_t unique, const struct fuse_init_in *in)
{
    struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION};
    out.max_readahead = in->max_readahead;
    out.flags = in->flags & (FUSE_BIG_WRITES | FUSE_MAX_PAGES);
    out.max_background = 64;
    out.congestion_threshold = 48;
    out.max_write = WRITE_BYTES_MAX;
    out.max_pages = WRITE_BYTES_MAX / 4096;
    out.time_gran = 1;
    reply(device, unique, 0, &out, sizeof out);
}

static void answer_lookup(const struct device *device, uint64_t unique, const char *name)
{
    struct fuse_entry_out out = {.attr_valid = 3600, .entry_valid = 3600};
    out.nodeid = strcmp(name, "disk") == 0 ? INODE_DISK : strcmp(name, "mark") == 0 ? INODE_MARK : 0;
    if (out.nodeid == 0) {
        reply(device, unique, -ENOENT, NULL, 0);
        return;
    }
    out.attr = attributes_of(device, out.nodeid);
    reply(device, unique, 0, &out, sizeof out);
}

static void answer_read(const struct device *device, uint64_t unique, const struct fuse_read_in *in)
{
    size_t size = in->size < sizeof answer ? in->size : sizeof answer;
    ssize_t got = pread(device->image, answer, size, (off_t)in->offset);
    if (got < 0)
        reply(device, unique, -errno, NULL, 0);
    else
        reply(device, unique, 0, answer, (size_t)got);
}

static void answer_write(const struct device *device, uint64_t unique, uint64_t inode, const struct fuse_write_in *in)
{
    const char *data = (const char *)(in + 1);
    struct fuse_write_out out = {.size = in->size};
    if (inode == INODE_MARK) {
        log_entry(device, ENTRY_MARK, 0, data, in->size);
    } else if (in->offset + in->size > device->size) {
        reply(device, unique, -ENOSPC, NULL, 0);
        return;
    } else {
        if (pwrite(device->image, data, in->size, (off_t)in->offset) != (ssize_t)in->size)
            die("the image");
        log_entry(device, ENTRY_WRITE, in->offset, data, in->size);
    }
    reply(device, unique, 0, &out, sizeof out);
}

static void answer_request(const struct device *device)
{
    const struct fuse_in_header *header = (const struct fuse_in_header *)(const void *)request;
    const void *in = header + 1;
    struct fuse_attr_out attributes = {.attr_valid = 3600};
    struct fuse_open_out opened = {.open_flags = FOPEN_DIRECT_IO};
    struct fuse_statfs_out space = {.st = {.bsize = 4096, .frsize = 4096, .namelen = 255}};
    switch (header->opcode) {
    case FUSE_INIT:
        answer_init(device, header->unique, in);
        break;
    case FUSE_LOOKUP:
        answer_lookup(device, header->unique, in);
        break;
    case FUSE_GETATTR:
    case FUSE_SETATTR:
        attributes.attr = attributes_of(device, header->nodeid);
        reply(device, header->unique, 0, &attributes, sizeof attributes);
        break;
    case FUSE_OPEN:
        reply(device, header->unique, 0, &opened, sizeof opened);
        break;
    case FUSE_READ:
        answer_read(device, header->unique, in);
        break;
    case FUSE_WRITE:
        answer_write(device, header->unique, header->nodeid, in);
        break;
    case FUSE_FSYNC:
        log_entry(device, ENTRY_FLUSH, 0, NULL, 0);
        reply(device, header->unique, 0, NULL, 0);
        break;
    case FUSE_STATFS:
        reply(device, header->unique, 0, &space, sizeof space);
        break;
    case FUSE_FLUSH: /* of a descriptor that is closed, not of a disk */
    case FUSE_RELEASE:
        reply(device, header->unique, 0, NULL, 0);
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        break; /* want no answer */
    default:   /* also FUSE_FALLOCATE: then the loop device writes the zeros that it is asked for */
        reply(device, header->unique, -ENOSYS, NULL, 0);
    }
}

static void mount_at(struct device *device, const char *folder)
{
    char options[128];
    device->fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device->fuse < 0)
        die("/dev/fuse");
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device->fuse);
    if (mount("streamcore-test", folder, "fuse.streamcore-test", MS_NOSUID | MS_NODEV, options) != 0)
        die("mount");
}

int main(int count, char **arguments)
{
    struct device device;
    struct stat status;
    if (count != 4)
        return 2;
    device.image = open(arguments[2], O_RDWR | O_CLOEXEC);
    if (device.image < 0 || fstat(device.image, &status) != 0)
        die(arguments[2]);
    device.size = (uint64_t)status.st_size;
    device.log = open(arguments[3], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (device.log < 0)
        die(arguments[3]);
#ifdef PR_SET_IO_FLUSHER
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0); /* memory that we ask for must not wait for data to be written to us */
#endif
    mount_at(&device, arguments[1]);
    puts("ready");
    fflush(stdout);
    for (;;) {
        ssize_t got = read(device.fuse, request, sizeof request);
        if (got > 0)
            answer_request(&device);
        else if (errno == ENODEV)
            return 0; /* unmounted */
        else if (errno != EINTR && errno != EAGAIN && errno != ENOENT)
            die("/dev/fuse");
    }
}
