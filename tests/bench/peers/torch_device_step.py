"""One training step of PyTorch on a GPU, compiled, with flash attention, in bf16: the peer of
tests/bench/device_step.cpp, with its sizes and architecture (RMSNorm, norms of q and k, rotary
positions, grouped heads, SwiGLU).

  torch_device_step.py MODEL [--seq 4096] [--batch 1] [--steps 10] [--fp8] [--eager] [--peak 989]

fp32 master weights under autocast to bf16, fused AdamW, clipping by the global norm. --fp8: the
feed-forward products by torchao's float8 training, where it is installed. The last line is JSON
with the median tokens per second, MFU by device_step's formula and the peak of memory. Without a
GPU it says so and exits with 77.
"""
import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

# vocabulary, d_model, layers, heads, kv heads, head_dim, d_ff, tied
SIZES = {
    "tiny": (512, 128, 3, 2, 2, 64, 256, True),
    "124m": (50304, 768, 12, 12, 12, 64, 2048, True),
    "1b": (128256, 2048, 16, 32, 8, 64, 8192, True),
    "3b": (128256, 3072, 28, 24, 8, 128, 8192, True),
    "8b-proxy": (128256, 4096, 8, 32, 8, 128, 14336, False),
}


class RMSNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight).to(x.dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, d, d_ff):
        super().__init__()
        self.gate = nn.Linear(d, d_ff, bias=False)
        self.up = nn.Linear(d, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, d, heads, kv_heads, hd, d_ff):
        super().__init__()
        self.heads, self.kv_heads, self.hd = heads, kv_heads, hd
        self.norm1, self.norm2 = RMSNorm(d), RMSNorm(d)
        self.q_norm, self.k_norm = RMSNorm(hd), RMSNorm(hd)
        self.q = nn.Linear(d, heads * hd, bias=False)
        self.k = nn.Linear(d, kv_heads * hd, bias=False)
        self.v = nn.Linear(d, kv_heads * hd, bias=False)
        self.out = nn.Linear(heads * hd, d, bias=False)
        self.ffn = FeedForward(d, d_ff)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        h = self.norm1(x)
        q = rotate(self.q_norm(self.q(h).view(b, t, self.heads, self.hd)).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(self.k(h).view(b, t, self.kv_heads, self.hd)).transpose(1, 2), cos, sin)
        v = self.v(h).view(b, t, self.kv_heads, self.hd).transpose(1, 2)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, -1))
        return x + self.ffn(self.norm2(x))


class Model(nn.Module):
    def __init__(self, vocab, d, layers, heads, kv_heads, hd, d_ff, tied, seq):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(d, heads, kv_heads, hd, d_ff) for _ in range(layers))
        self.norm = RMSNorm(d)
        self.head = nn.Linear(d, vocab, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        angle = torch.outer(torch.arange(seq).float(), 1e4 ** (-torch.arange(hd // 2).float() / (hd // 2)))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), targets.flatten())


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model", choices=SIZES)
    p.add_argument("--seq", type=int, default=4096)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--peak", type=float, default=989.0)
    p.add_argument("--fp8", action="store_true")
    p.add_argument("--eager", action="store_true")
    o = p.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"skipped": "PyTorch sees no GPU"}))
        sys.exit(77)
    torch.manual_seed(1)
    vocab, d, layers, heads, kv_heads, hd, d_ff, tied = SIZES[o.model]
    model = Model(vocab, d, layers, heads, kv_heads, hd, d_ff, tied, o.seq).cuda()
    if o.fp8:
        from torchao.float8 import convert_to_float8_training

        convert_to_float8_training(model, module_filter_fn=lambda m, name: ".ffn." in name)
    parameters = sum(x.numel() for x in model.parameters())
    step_of = model if o.eager else torch.compile(model)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    times = []
    for step in range(o.steps + 3):  # three warm up and compile
        tokens = torch.randint(vocab, (o.batch, o.seq + 1), device="cuda")
        torch.cuda.synchronize()
        begin = time.perf_counter()
        adamw.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = step_of(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        loss.item()
        if step >= 3:
            times.append(time.perf_counter() - begin)
    weights = parameters - (0 if tied else vocab * d)
    flop = o.batch * o.seq * (6 * weights + 6 * layers * o.seq * heads * hd)
    median = statistics.median(times)
    print(json.dumps({
        "peer": f"torch-{torch.__version__}" + (" fp8" if o.fp8 else "") + (" eager" if o.eager else ""),
        "device": torch.cuda.get_device_name(),
        "model": o.model,
        "parameters": parameters,
        "tok_s": o.batch * o.seq / median,
        "step_ms_median": 1e3 * median,
        "mfu": flop / median / 1e12 / o.peak,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }))


main()
