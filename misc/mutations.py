"""Damage done to files on purpose: bytes, JSON, safetensors, images and text, each a function of the generator it is given."""

import copy
import json
import struct
import zlib

import numpy as np

NUMBERS = (0, 1, -1, 2, 255, 256, 2 ** 31 - 1, 2 ** 31, 2 ** 63 - 1, 2 ** 63, -2 ** 63, 10 ** 30, 10 ** 400, 0.5, -0.0, 1e308,
           float("nan"), float("inf"))
TEXTS = ("", ".", "..", "../../etc/passwd", "/etc/passwd", "a/../../b", "a\0b", "\n", "\u001b[2J", "\ud800", "é", "x" * 300,
         "x" * 5000, "0" * 64, "cifar", "swin_t", "vit_b_16", "convnet_d9_w9999", "inception_v3",
         "00000_a/00000-p000-r00.png", "C:\\x", "~")
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F4", "C64",
          "U64", "U16", "X")
LENGTHS = (0, 1, 7, 8, 100_000_000, 100_000_001, 2 ** 31, 2 ** 62, 2 ** 63, 2 ** 64 - 1)


def pick(rng: np.random.Generator, values):
    """One of `values`, as it is."""
    return values[int(rng.integers(len(values)))]


def damaged_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four of: a flipped bit, another byte, bytes too many, a part cut out, doubled or overwritten, the end lost."""
    for _ in range(int(rng.integers(1, 5))):
        size = len(content)
        if not size:
            return rng.bytes(int(rng.integers(0, 64)))
        first = int(rng.integers(size))
        last = min(size, first + int(rng.integers(1, 1 + max(1, size // pick(rng, (1, 8, 64))))))
        before, part, after = content[:first], content[first:last], content[last:]
        flipped = bytes([part[0] ^ 1 << int(rng.integers(8))])
        content = pick(rng, (
            before + flipped + part[1:] + after, before + rng.bytes(1) + part[1:] + after,
            before + rng.bytes(int(rng.integers(1, 16))) + part + after, before + after, before + part + part + after,
            before + bytes([pick(rng, (0, 255))]) * len(part) + after, before))
    return content


def places(tree, at=()) -> list[tuple]:
    """The path of every value in a JSON tree, as keys and indices."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def damaged_tree(tree, rng: np.random.Generator):
    """A JSON tree with one to three values replaced, removed, doubled or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(int(rng.integers(1, 4))):
        *above, key = pick(rng, [place for place in places(tree) if place] or [(None,)])
        if key is None:
            return other_value(tree, rng)
        holder = tree
        for step in above:
            holder = holder[step]
        action = rng.integers(5)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif action == 1:
            holder[pick(rng, TEXTS)] = copy.deepcopy(holder[key])
        elif action == 2:
            source = tree
            for step in pick(rng, places(tree)):
                source = source[step]
            holder[key] = copy.deepcopy(source)
        else:
            holder[key] = other_value(holder[key], rng)
    return tree


def other_value(value, rng: np.random.Generator):
    """Another value in place of `value`, often of the same type."""
    if isinstance(value, int | float) and rng.integers(2):
        return pick(rng, NUMBERS)
    if isinstance(value, str) and rng.integers(2):
        return pick(rng, TEXTS + DTYPES)
    return pick(rng, (None, True, False, [], {}, [[]], {"": {}}, pick(rng, NUMBERS), pick(rng, TEXTS), [value], {"a": value}))


def as_json(tree) -> bytes:
    """JSON text, also of what JSON does not allow: NaN and half characters."""
    return json.dumps(tree, ensure_ascii=True).encode()


def damaged_json(content: bytes, rng: np.random.Generator) -> bytes:
    """JSON with other values, mostly; sometimes other bytes, or brackets without end."""
    kind = rng.integers(10)
    if kind == 0:
        return damaged_bytes(content, rng)
    if kind == 1:
        depth = pick(rng, (30, 900, 5000, 100_000))
        left, right = pick(rng, (("[", "]"), ('{"a":', "}"), ("[[", "]"), ('["', "")))
        place = int(rng.integers(len(content) + 1))
        return content[:place] + (left * depth + right * depth).encode() + content[place:]
    return as_json(damaged_tree(json.loads(content), rng))


def damaged_lines(content: bytes, rng: np.random.Generator) -> bytes:
    """Lines of JSON, one of them damaged, lost, doubled or moved."""
    lines = content.splitlines(keepends=True)
    place = int(rng.integers(len(lines)))
    line = lines.pop(place)
    action = rng.integers(5)
    if action == 0:
        return b"".join(lines)
    if action == 1:
        lines.insert(int(rng.integers(len(lines) + 1)), line)
        return b"".join([line, *lines])
    if action == 2:
        return damaged_bytes(content, rng)
    lines.insert(place, damaged_json(line.strip(), rng) + b"\n")
    return b"".join(lines)


def damaged_safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file with another header, header length, values, types, shapes or names; or other bytes."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8:8 + length], content[8 + length:]
    kind = rng.integers(6)
    if kind == 0:
        return damaged_bytes(content, rng)
    if kind == 1:
        wrong = int(pick(rng, LENGTHS + (length + 1, length - 1, len(content), len(content) - 8)))
        return struct.pack("<Q", wrong % 2 ** 64) + header + data
    if kind in (2, 3):
        tree = json.loads(header)
        header = as_json(damaged_tree(tree, rng) if kind == 2 else damaged_entry(tree, rng))
        return struct.pack("<Q", len(header)) + header + data
    return other_tensors(content, rng)


def damaged_entry(tree: dict, rng: np.random.Generator) -> dict:
    """A header in which one tensor has another type, shape, or offsets that overlap, run backwards or beyond the file."""
    entry = tree[pick(rng, sorted(tree))]
    first, last = entry.get("data_offsets", (0, 0))
    entry.update(pick(rng, (
        {"dtype": pick(rng, DTYPES)}, {"shape": [int(pick(rng, LENGTHS)) for _ in range(int(rng.integers(5)))]},
        {"shape": entry.get("shape", [])[::-1]}, {"data_offsets": [last, first]}, {"data_offsets": [0, last]},
        {"data_offsets": [first, int(pick(rng, LENGTHS))]}, {"shape": [*entry.get("shape", []), 1]},
        {"shape": [0, 2 ** 62], "data_offsets": [first, first]})))
    return tree


def other_tensors(content: bytes, rng: np.random.Generator) -> bytes:
    """A sound safetensors file, one of whose tensors has other values, another type or shape, another name, or is gone."""
    import torch
    from safetensors.torch import load, save
    tensors = load(content)
    name = pick(rng, sorted(tensors))
    value = tensors[name].clone()
    kind = rng.integers(8)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[pick(rng, sorted(tensors)) + "x"] = value
    elif kind == 2:
        tensors[name] = value.to(pick(rng, (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
                                            torch.complex64, torch.float8_e5m2, torch.uint16)))
    elif kind == 3:
        tensors[name] = pick(rng, (value.flatten(), value[None], value.reshape(-1)[:0], value.reshape(-1)[:1], value.sum()))
    elif kind == 4:
        tensors[name] = tensors[pick(rng, sorted(tensors))].clone()
    elif value.numel():
        wrong = pick(rng, (float("nan"), float("inf"), -float("inf"), -1.0, 1e9, 127.0, 0.0))
        place, flat = int(rng.integers(value.numel())), value.view(-1)
        flat[place] = torch.tensor(wrong).nan_to_num(0, 1e9, -1e9).to(value.dtype) if not value.is_floating_point() else wrong
        tensors[name] = value
    return save({key: each.contiguous() for key, each in tensors.items()})


def damaged_image(content: bytes, rng: np.random.Generator) -> bytes:
    """An image with other bytes; of a PNG also another header under a checksum that fits."""
    if content[12:16] != b"IHDR" or rng.integers(2):
        return damaged_bytes(content, rng)
    width, height, *rest = struct.unpack(">IIBBBBB", content[16:29])
    sides = (0, 1, 7, 9500, 40_000, 2 ** 16, 2 ** 31 - 1, 2 ** 32 - 1)
    if rng.integers(2):
        width, height = (int(pick(rng, sides + (side,))) for side in (width, height))
    else:
        rest[int(rng.integers(5))] = int(pick(rng, (0, 1, 2, 3, 4, 6, 8, 16, 255)))
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, *rest)
    return content[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


def damaged_text(content: bytes, rng: np.random.Generator) -> bytes:
    """Text with lines lost, doubled, swapped or replaced; or other bytes."""
    if not rng.integers(3):
        return damaged_bytes(content, rng)
    lines = content.splitlines()
    for _ in range(int(rng.integers(1, 4))):
        place, action = int(rng.integers(len(lines) + 1)), rng.integers(4)
        if action == 0 and len(lines):
            del lines[place - 1]
        elif action == 1 and len(lines):
            lines.insert(place, pick(rng, lines))
        elif action == 2:
            rng.shuffle(lines)
        else:
            text = pick(rng, TEXTS + ("a\tb", "../x.png\tn01", "/etc/passwd\tn01", "\u2028", "\x0b", "\t", "\ufeff"))
            lines.insert(place, text.encode("utf-8", "surrogatepass"))
    return b"\n".join(lines) + pick(rng, (b"\n", b"", b"\r\n"))
