"""Scratch memory that is lent again belongs to nobody else."""

from __future__ import annotations

import threading

import numpy as np

from mmedge.engines.onnx.scratch import LARGEST, MOST, SMALLEST, Scratch


def test_memory_is_lent_again_once_nobody_has_it() -> None:
    scratch = Scratch()
    shape = (16, 1024)
    first = scratch.zeros(shape, np.float32)
    address = first.ctypes.data
    second = scratch.zeros(shape, np.float32)
    assert second.ctypes.data != address
    part = first[3:5]
    del first
    third = scratch.zeros(shape, np.float32)
    assert third.ctypes.data not in (address, second.ctypes.data)  # a part of it is still looked at
    part[:] = 7
    del part
    fourth = scratch.zeros((8, 2048), np.float32)  # a little smaller
    assert fourth.ctypes.data == address and not fourth.any()


def test_memory_that_is_kept_has_a_limit() -> None:
    scratch = Scratch()
    held = [scratch.empty((LARGEST // 2,), np.uint8) for _ in range(2 * MOST // LARGEST + 4)]
    assert scratch._bytes <= MOST and len({array.ctypes.data for array in held}) == len(held)
    before = scratch._bytes
    scratch.empty((LARGEST + 1,), np.uint8), scratch.empty((SMALLEST - 1,), np.uint8)
    assert scratch._bytes == before


def test_threads_never_share_what_is_lent() -> None:
    scratch, wrong = Scratch(), []

    def work(number: int) -> None:
        for _ in range(200):
            mine = scratch.empty((200, 500), np.float32)
            mine.fill(number)
            if not (mine == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
