"""Causal attention of PyTorch on a CPU, fp32: a peer of tests/acceptance/attention_speed.cpp.

  torch_attention.py TOKENS HEADS THREADS REPEATS

scaled_dot_product_attention over (1, HEADS, TOKENS, 64). The last line is JSON with the least
seconds of the forward and of forward and backward, on the clock and of the process on all threads.
"""
import json
import sys
import time

import torch
import torch.nn.functional as F

tokens, heads, threads, repeats = map(int, sys.argv[1:])
torch.set_num_threads(threads)
torch.manual_seed(1)
q, k, v, d_out = (torch.rand(1, heads, tokens, 64) * 2 - 1 for _ in range(4))


def least(fn):
    wall = cpu = float("inf")
    for _ in range(repeats):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        fn()
        wall = min(wall, time.perf_counter() - begin)
        cpu = min(cpu, time.process_time() - begin_cpu)
    return {"wall": wall, "cpu": cpu}


def forward():
    with torch.no_grad():
        F.scaled_dot_product_attention(q, k, v, is_causal=True)


def forward_backward():
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    F.scaled_dot_product_attention(*inputs, is_causal=True).backward(d_out)


print(json.dumps({"torch": torch.__version__, "forward": least(forward),
                  "forward_backward": least(forward_backward)}))
