"""One training step of PyTorch on a CPU, fp32: the peer of tests/acceptance/cpu_speed.cpp.

  torch_step.py MODEL ARCH THREADS STEPS     MODEL: small | 124m     ARCH: gpt2 | stoa

gpt2: LayerNorm, biases, learned positions, GELU MLP of 4 d_model. stoa: the architecture of this
project (RMSNorm, norms of q and k, rotary positions, SwiGLU). Both tie their embeddings and run
forward, cross-entropy, backward, global-norm clipping and AdamW on random tokens. The last line is
JSON with the median tokens per second.
"""
import json
import math
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

SIZES = {  # layers, d_model, heads, vocabulary, d_ff of SwiGLU, batch, seq_len
    "small": (4, 256, 4, 4096, 768, 4, 256),
    "124m": (12, 768, 12, 50257, 2048, 4, 64),
}


def attention(q, k, v, mask):
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = torch.matmul(q, k.transpose(-1, -2)) * (1.0 / math.sqrt(q.shape[-1]))
    return torch.matmul(torch.softmax(scores + mask, dim=-1), v)


class RMSNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


class Block(nn.Module):
    def __init__(self, arch, d, heads, d_ff):
        super().__init__()
        self.arch, self.heads, self.bias = arch, heads, arch == "gpt2"
        norm = nn.LayerNorm if self.bias else RMSNorm
        self.norm1, self.norm2 = norm(d), norm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=self.bias)
        self.out = nn.Linear(d, d, bias=self.bias)
        if self.bias:
            self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        else:
            self.q_norm, self.k_norm = RMSNorm(d // heads), RMSNorm(d // heads)
            self.gate_up = nn.Linear(d, 2 * d_ff, bias=False)
            self.down = nn.Linear(d_ff, d, bias=False)

    def forward(self, x, mask, cos, sin):
        b, t, d = x.shape
        q, k, v = (
            z.view(b, t, self.heads, d // self.heads).transpose(1, 2)
            for z in self.qkv(self.norm1(x)).split(d, dim=2)
        )
        if not self.bias:
            q, k = self.q_norm(q), self.k_norm(k)
            q, k = (z * cos + torch.cat((-z.chunk(2, -1)[1], z.chunk(2, -1)[0]), -1) * sin for z in (q, k))
        x = x + self.out(attention(q, k, v, mask).transpose(1, 2).reshape(b, t, d))
        if self.bias:
            return x + self.down(F.gelu(self.up(self.norm2(x))))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, arch, layers, d, heads, vocab, d_ff, seq_len):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.positions = nn.Embedding(seq_len, d) if arch == "gpt2" else None
        self.blocks = nn.ModuleList(Block(arch, d, heads, d_ff) for _ in range(layers))
        self.norm = nn.LayerNorm(d) if arch == "gpt2" else RMSNorm(d)
        self.mask = torch.full((seq_len, seq_len), float("-inf")).triu(1)
        half = d // heads // 2
        angle = torch.outer(torch.arange(seq_len).float(), 1e4 ** (-torch.arange(half).float() / half))
        self.cos, self.sin = torch.cat((angle.cos(),) * 2, -1), torch.cat((angle.sin(),) * 2, -1)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight
        for block in self.blocks:
            x = block(x, self.mask, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    size, arch, threads, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    layers, d, heads, vocab, d_ff, batch, seq_len = SIZES[size]
    model = Model(arch, layers, d, heads, vocab, d_ff, seq_len)
    try:
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    except (TypeError, RuntimeError, ValueError):  # older versions, or fused only on a GPU
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
    times = []
    for step in range(steps + 2):  # two warm up
        tokens = torch.randint(vocab, (batch, seq_len + 1))
        begin = time.perf_counter()
        adamw.zero_grad(set_to_none=True)
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        loss.item()
        if step >= 2:
            times.append(time.perf_counter() - begin)
    print(json.dumps({
        "peer": f"torch-{torch.__version__}-{arch}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "tok_s": batch * seq_len / statistics.median(times),
    }))


main()
