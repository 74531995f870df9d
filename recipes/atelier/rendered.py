"""Batches to train on, rendered as they are needed: by the training process itself, or by others beside it."""

import itertools
import math
import mmap
import multiprocessing
import os
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from duolora.atelier.scene import SIZE
from recipes.atelier.data import base_poses

POOL = 1_200_000
"""The most scenes that are rendered for a GPU: 15 GB in four poses."""


class Rendered:
    """Batches of images in several poses, bytes (n, poses, 32, 32, 3), and their captions' tokens, without end.

    No two processes render the same, with `first` and `apart` chosen so.
    """

    def __init__(self, tokenizer: CLIPTokenizer, batch: int, poses: int, first: int, apart: int) -> None:
        self.tokenizer, self.batch, self.poses, self.first, self.apart = tokenizer, batch, poses, first, apart

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seed = self.first
        while True:
            made = [base_poses(seed + k * self.apart, self.poses) for k in range(self.batch)]
            seed += self.batch * self.apart
            texts = [text for _, text in made]
            tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
            yield torch.from_numpy(np.stack([pixels for pixels, _ in made])), tokens


class Pool:
    """Batches sampled from what other processes have rendered so far, while they render more, until it is full.

    An image is sampled several times, each time with another pose in front. Its processes are forked: make one before
    CUDA is used.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, batch: int, poses: int, scenes: int, first: int, processes: int
    ) -> None:
        self.batch, self.tokenizer, self.poses = batch, tokenizer, poses
        self.first, self.processes = first, processes
        shape = (processes, scenes // processes)
        self.pixels = shared(np.uint8, *shape, poses, SIZE, SIZE, 3)
        self.tokens = shared(np.int64, *shape, tokenizer.model_max_length)
        self.counts = shared(np.int64, processes)
        fork = multiprocessing.get_context("fork")
        for number in range(processes):
            fork.Process(target=self._render, args=(number,), daemon=True).start()

    def _render(self, number: int) -> None:
        os.nice(10)
        torch.set_num_threads(1)
        made = Rendered(self.tokenizer, 16, self.poses, self.first + number, self.processes)
        for pixels, tokens in made:
            place = int(self.counts[number])
            if place + len(pixels) > self.pixels.shape[1]:
                return
            self.pixels[number, place : place + len(pixels)] = pixels
            self.tokens[number, place : place + len(pixels)] = tokens
            self.counts[number] += len(pixels)

    def on(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end, from a copy on the device that follows what is rendered."""
        while self.counts.min() * self.processes < 4 * self.batch:
            time.sleep(0.1)
        pixels, tokens = torch.empty_like(self.pixels, device=device), torch.empty_like(self.tokens, device=device)
        copied = [0] * self.processes
        for step in itertools.count():
            if step % 20 == 0:
                ready = self.counts.tolist()
                for number, (old, new) in enumerate(zip(copied, ready, strict=True)):
                    pixels[number, old:new] = self.pixels[number, old:new].to(device)
                    tokens[number, old:new] = self.tokens[number, old:new].to(device)
                copied, counts = ready, torch.tensor(ready, device=device)
            number = torch.randint(self.processes, (self.batch,), device=device)
            place = (torch.rand(self.batch, device=device) * counts[number]).long()
            sampled = pixels[number, place]
            yield sampled.roll(int(torch.randint(sampled.shape[1], ())), 1), tokens[number, place]


def shared(kind: type[np.generic], *shape: int) -> Tensor:
    """Zeros that processes forked later share; memory is taken as they are written."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, size), kind).reshape(shape))
