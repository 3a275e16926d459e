"""Processes of tests: those that start together, for races, and those that start without importing PyTorch again."""

import multiprocessing
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SERVER = multiprocessing.get_context("forkserver")  # each of its processes begins with what a run imports: seconds
SERVER.set_forkserver_preload(["isoflop.train", "isoflop.train.sharded", "torch.distributed.fsdp"])


def run_python(code: str, told: Path) -> int:
    """The exit status of `python -c code` here, where PyTorch is imported already; stderr goes to the file `told`."""
    process = SERVER.Process(target=_execute, args=(code, str(told)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _execute(code: str, told: str) -> None:
    with open(told, "wb") as file, open(os.devnull, "wb") as nothing:
        os.dup2(file.fileno(), 2)
        os.dup2(nothing.fileno(), 1)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """The results of the functions, each in a forked process of its own; all begin when the last is ready.

    A result is what the function returns, or the exception that it raises.
    """
    begin_read, begin_write = os.pipe()
    ready_read, ready_write = os.pipe()
    children = [_start(function, begin_read, begin_write, ready_write) for function in work]
    os.close(begin_read)
    waiting = len(children)
    while waiting:
        waiting -= len(os.read(ready_read, waiting))
    os.close(begin_write)  # the barrier: all children's reads end
    return [_finish(*child) for child in children]


def _start(function: Callable[[], Any], begin: int, barrier: int, ready: int) -> tuple[int, int]:
    result_read, result_write = os.pipe()
    if pid := os.fork():
        os.close(result_write)
        return pid, result_read
    try:
        torch.set_num_threads(1)
        os.close(barrier)
        os.write(ready, b".")
        os.read(begin, 1)
        try:
            result: Any = function()
        except BaseException as error:
            result = error
        with os.fdopen(result_write, "wb") as file:
            pickle.dump(result, file)
    finally:
        os._exit(0)


def _finish(pid: int, result: int) -> Any:
    with os.fdopen(result, "rb") as file:
        content = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(content) if content else RuntimeError("a process ended without a result")


def failures(results: Sequence[Any]) -> list[BaseException]:
    """Those of the results that are exceptions."""
    return [result for result in results if isinstance(result, BaseException)]
