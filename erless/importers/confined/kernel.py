"""Take rights away from this process for good, with what the Linux kernel offers.

Two mechanisms, each used where the kernel has it, without privileges and without a dependency:

- **seccomp** (Linux 3.5): a filter of system calls. Those that reading files, memory, time and
  ending need are allowed; opening for writing, sockets, new processes and all the rest fail with
  EPERM. Threads may start, since torch computes in them.
- **Landlock** (Linux 5.13): no file may be written, made or removed, and from 6.7 on no TCP port
  bound or connected to.

Both hold for every thread that exists, and cannot be undone. Numbers are from the kernel's
`asm/unistd_64.h` and `asm-generic/unistd.h`; constants from `linux/seccomp.h`, `linux/landlock.h`,
`linux/filter.h` and `linux/audit.h`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import NamedTuple

__all__ = ["drop_rights"]

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000

_LANDLOCK_WRITES = 0b1_1111_1111_0010  # every access of ABI 1 but executing, reading and listing
_LANDLOCK_WRITES_LATER = {2: 1 << 13, 3: 1 << 14}  # moving between folders; truncating
_LANDLOCK_TCP = 0b11  # binding and connecting, ABI 4
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446


class _Machine(NamedTuple):
    """A processor's audit number, and its system calls by what the filter does with them."""

    audit: int
    seccomp: int
    allowed: tuple[int, ...]
    opens: tuple[tuple[int, int], ...]  # number, place of the flags among the arguments
    prlimit: int
    clone: int
    clone3: int


# read write close fstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask
# rt_sigreturn pread64 readv writev access sched_yield mremap madvise dup nanosleep getpid exit
# uname getcwd readlink gettimeofday getrlimit getrusage sysinfo times getuid getgid geteuid getegid
# sigaltstack gettid futex sched_getaffinity getdents64 set_tid_address fadvise64
# clock_gettime clock_getres clock_nanosleep exit_group restart_syscall newfstatat readlinkat
# fcntl faccessat set_robust_list getrandom membarrier statx rseq faccessat2 stat lstat
_X86_64 = _Machine(
    audit=0xC000003E,
    seccomp=317,
    allowed=(
        *(0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 24, 25, 28, 32, 35, 39, 60),
        *(63, 79, 89, 96, 97, 98, 99, 100, 102, 104, 107, 108, 131, 186, 202, 204, 217, 218),
        *(221, 228, 229, 230, 231, 219, 262, 267, 269, 273, 318, 324, 332, 334, 439, 4, 6, 72),
    ),
    opens=((2, 1), (257, 2)),
    prlimit=302,
    clone=56,
    clone3=435,
)
_AARCH64 = _Machine(
    audit=0xC00000B7,
    seccomp=277,
    allowed=(
        *(63, 64, 57, 80, 73, 62, 222, 226, 215, 214, 134, 135, 139, 67, 65, 66, 48, 124, 216, 233),
        *(23, 101, 172, 93, 160, 17, 78, 169, 163, 165, 179, 153, 174, 176, 175, 177, 132, 178),
        *(98, 123, 61, 96, 223, 113, 114, 115, 94, 128, 79, 99, 278, 283, 291, 293, 439, 25),
    ),
    opens=((56, 2),),
    prlimit=261,
    clone=220,
    clone3=435,
)
_MACHINES = {"x86_64": _X86_64, "aarch64": _AARCH64}


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr as of ABI 4."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64))


def drop_rights() -> tuple[str, ...]:
    """Give up writing files, the network and new processes.

    Returns:
        What the kernel enforces from now on: of "landlock" and "seccomp", those that it has. No
        other kernel than Linux has any.
    """
    if platform.system() != "Linux":
        return ()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return ()
    features = []
    if _landlock(libc):
        features.append("landlock")
    if _seccomp(libc):
        features.append("seccomp")
    return tuple(features)


def _landlock(libc: ctypes.CDLL) -> bool:
    """Forbid all that Landlock knows of writing and TCP."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    later = sum(access for since, access in _LANDLOCK_WRITES_LATER.items() if version >= since)
    rules = _Ruleset(_LANDLOCK_WRITES | later, _LANDLOCK_TCP if version >= 4 else 0)
    size = ctypes.sizeof(rules) if version >= 4 else 8
    descriptor = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(rules), size, 0)
    if descriptor < 0:
        return False
    restricted = bool(libc.syscall(_LANDLOCK_RESTRICT, descriptor, 0) == 0)
    os.close(descriptor)
    return restricted


def _seccomp(libc: ctypes.CDLL) -> bool:
    """Allow the calls of the list for all threads."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    code = _filter(machine)
    program = _Program(len(code) // 8, code)
    flags = _SECCOMP_FILTER_FLAG_TSYNC
    mode = _SECCOMP_SET_MODE_FILTER
    return bool(libc.syscall(machine.seccomp, mode, flags, ctypes.byref(program)) == 0)


def _filter(machine: _Machine) -> bytes:
    """The filter as instructions of classic BPF (code, jump if true, jump if not, operand)."""
    denied = _ERRNO | errno.EPERM
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL),  # another architecture has other numbers
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number in machine.allowed:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, place in machine.opens:
        program += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * place),
            (_ANY_BIT, 0, 1, _WRITING),
            (_RETURN, 0, 0, denied),
            (_RETURN, 0, 0, _ALLOW),
        ]
    program += [
        (_EQUAL, 0, 5, machine.prlimit),  # only to ask for a limit of its own
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 2, 0, 0xFFFFFFFF),
        (_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * 2),
        (_ANY_BIT, 0, 1, 0xFFFFFFFF),
        (_RETURN, 0, 0, denied),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 1, machine.prlimit),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 4, machine.clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, denied),
        (_EQUAL, 0, 1, machine.clone3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),  # its flags lie in memory; glibc then uses clone
        (_RETURN, 0, 0, denied),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
