"""A hash of columns' values: the same wherever a file's row groups end, and by any version of Arrow."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def values_digest(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> str:
    """Hashes names, types, order and values of columns; a categorical column counts as its values.

    Each column is a few streams of bytes (which values there are, how long they are, what they hold), and each stream
    has a hash of its own: so it does not matter where one batch ends and the next begins. Arrow's own streams hold
    dictionaries per row group, and whatever lies below a null.

    Args:
        schema: of the batches; there may be none.
        batches: the rows.
    """
    streams: defaultdict[str, Any] = defaultdict(hashlib.sha256)
    for batch in batches:
        for number, column in enumerate(batch.columns):
            _add(streams, f"{number}", column)
    whole = hashlib.sha256()
    for number, field in enumerate(schema):
        whole.update(f"{number}:{len(field.name)}:{field.name}:{_kind(field.type)}\n".encode())
    for path in sorted(streams):
        whole.update(f"{path}={streams[path].hexdigest()}\n".encode())
    return whole.hexdigest()


def _kind(kind: Any) -> str:
    """A type, as far as it changes what values mean: not how Arrow holds them."""
    if isinstance(kind, pa.BaseExtensionType):
        return _kind(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    if pa.types.is_struct(kind) or pa.types.is_nested(kind):
        inner = [kind.field(number) for number in range(kind.num_fields)]
        names = [field.name if pa.types.is_struct(kind) else "" for field in inner]
        held = ",".join(f"{len(name)}:{name}:{_kind(field.type)}" for name, field in zip(names, inner, strict=True))
        return f"{'struct' if pa.types.is_struct(kind) else 'list'}<{held}>"
    return str(kind)


def _add(streams: defaultdict[str, Any], path: str, column: Any) -> None:
    """Adds the values of an array to the streams of its column, those inside of it under paths of their own."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _add(streams, path, column.storage)
    if pa.types.is_dictionary(kind):
        return _add(streams, path, column.cast(kind.value_type))
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):  # they cannot be filtered
        return _add(streams, path, column.cast(pa.large_binary()))
    streams[f"{path}?"].update(_bytes(column.is_valid()))
    there = column.drop_null()
    if pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _add(streams, f"{path}.{number}", pc.struct_field(there, [number]))
    elif pa.types.is_nested(kind):
        lists = there.cast(pa.large_list(_inner(kind)))
        streams[f"{path}#"].update(_bytes(pc.list_value_length(lists).cast(pa.int64())))
        _add(streams, f"{path}[]", lists.flatten())
    elif pa.types.is_null(kind):
        pass
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        streams[path].update(_bytes(there))
    elif pa.types.is_temporal(kind):
        streams[path].update(_bytes(there.view(pa.int64() if kind.bit_width == 64 else pa.int32())))
    else:
        texts = there.cast(pa.string()) if pa.types.is_decimal(kind) else there
        data = texts.cast(pa.large_binary())
        streams[f"{path}#"].update(_bytes(pc.binary_length(data)))
        streams[path].update(b"".join(data.to_pylist()))
    return None


def _inner(kind: Any) -> pa.DataType:
    """What the lists of a type hold; a map is a list of its pairs."""
    if not pa.types.is_map(kind):
        return kind.value_field
    return pa.struct([kind.key_field, kind.item_field])


def _bytes(numbers: Any) -> bytes:
    """Numbers without nulls, in a row; truths are a byte each."""
    found: bytes = numbers.to_numpy(zero_copy_only=False).tobytes()
    return found
