"""A program that trains in forked children and hurts them as it is told. One line of JSON in, one out, for each.

Starting from nothing takes seconds; a fork of this process, which has everything imported and has computed nothing,
takes none.
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys

from harmonic_gpt.__main__ import main
from harmonic_gpt.allocator import keep_freed_memory
from harmonic_gpt.training import loop, saving

WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink"}


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_write(run_dir: str, number: int) -> None:
    """Die just before the number-th change of the file system below `run_dir`. Counts into RUN_DIR.writes.

    Opening a file to write anew is two: the old contents go, then the new ones come.
    """
    seen, emptying = [0], [False]
    count = os.open(f"{run_dir}.writes", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)

    def change(path) -> None:
        if not str(path).startswith(f"{run_dir}/"):
            return
        seen[0] += 1
        if seen[0] == number:
            kill_self()
        os.pwrite(count, str(seen[0]).encode(), 0)

    def hook(event: str, arguments: tuple) -> None:
        if emptying[0]:
            return
        if event == "open" and isinstance(arguments[0], str | os.PathLike) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            change(arguments[0])
            if arguments[2] & os.O_TRUNC and str(arguments[0]).startswith(f"{run_dir}/"):
                emptying[0] = True  # what the open does next, so that death may come between it and the first write
                os.close(os.open(arguments[0], os.O_CREAT | os.O_WRONLY | os.O_TRUNC))
                emptying[0] = False
                change(arguments[0])
        elif event in WRITES:
            path = arguments[1] if event == "os.symlink" else arguments[0]
            inside = arguments[-1]  # the open folder that the name is relative to: how rmtree goes about it
            change(
                f"{os.readlink(f'/proc/self/fd/{inside}')}/{path}" if inside >= 0 and not os.path.isabs(path) else path
            )

    real = os.fsync

    def fsync(descriptor: int) -> None:
        change(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def at_forward(number: int, action) -> None:
    """Call `action` before the number-th forward pass of training (two make a step here)."""
    real, seen = loop.setup, [0]

    def setup(*arguments):
        run = real(*arguments)

        def before(*_):
            seen[0] += run.model.training
            if run.model.training and seen[0] == number:
                action(run)

        run.model.register_forward_pre_hook(before)
        return run

    loop.setup = setup


def poison(run) -> None:
    """Make the gradients of this step NaN."""
    handle = run.bare_model.transformer.wpe.weight.register_hook(lambda gradient: gradient * math.nan)
    real = run.optimizer.zero_grad

    def zero_grad(*args, **kwargs):
        handle.remove()
        return real(*args, **kwargs)

    run.optimizer.zero_grad = zero_grad


def terminate_during_save(run) -> None:
    """SIGTERM now, and again while the checkpoint is written."""
    real = saving.write

    def write(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    saving.write = write
    os.kill(os.getpid(), signal.SIGTERM)


def obey_permissions() -> None:
    """Give up root's right to write where the permission bits forbid it."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())


def inject(fault: dict, run_dir: str) -> None:
    for name, value in fault.items():
        if name == "kill_at_write":
            kill_at_write(run_dir, value)
        elif name == "kill_at_forward":
            at_forward(value, lambda run: kill_self())
        elif name == "nan_at_forward":
            at_forward(value, poison)
        elif name == "terminate_at_forward":
            at_forward(value, terminate_during_save)
        elif name == "largest_file":  # stands for a full disk: the same write calls fail, with another number
            resource.setrlimit(resource.RLIMIT_FSIZE, (value, value))
        elif name == "read_only_at_forward":
            obey_permissions()
            at_forward(value, lambda run: os.chmod(run_dir, 0o555))
        elif name == "wait_at_forward":  # until the test writes into the pipe
            at_forward(value, lambda run: os.read(os.open(f"{run_dir}.pipe", os.O_RDONLY), 1))
        else:
            raise ValueError(name)


def child(arguments: list[str], fault: dict, run_dir: str, log: str) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    inject(fault, run_dir)
    sys.argv = ["train.py"]
    main(["train", *arguments])


if __name__ == "__main__":
    keep_freed_memory()
    for line in sys.stdin:
        ask = json.loads(line)
        if "wait_for" in ask:
            pid = ask["wait_for"]
        else:
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    child(ask["arguments"], ask["fault"], ask["run_dir"], ask["log"])
                except SystemExit as end:
                    code = end.code or 0
                except BaseException:  # noqa: BLE001  a child must not go on as its parent
                    import traceback

                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        answer = pid if ask.get("go_on") else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps(answer), flush=True)
