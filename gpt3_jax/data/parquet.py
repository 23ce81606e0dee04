"""Reads a text column of a Parquet file, row group by row group."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from gpt3_jax.data.files import OpenFile, reason
from gpt3_jax.errors import RunError, UserError


def column_slices(
    path: str, column: str, start: int, block_bytes: int
) -> Iterator[tuple[list[str | bytes | None], int, int, int]]:
    """Yields (values, first row, row after the last, rows of the file), about `block_bytes` at a time, from row `start`
    on.

    Supports columns of strings, of binary (read as UTF-8), of nulls, and of dictionaries of these (pandas's
    categories).

    Raises:
      UserError: the column is missing or of another type, or pyarrow is not installed.
      RunError: the file is damaged or cannot be read.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(
            f"{path} is Parquet, which needs the package pyarrow: pip install -c constraints.txt -e '.[data]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(Reader(path)) as table:
            schema = table.schema_arrow
            kind = _kind(path, column, schema)
            total = table.metadata.num_rows
            row = 0
            for group in range(table.num_row_groups):
                length = table.metadata.row_group(group).num_rows
                if row + length > start:
                    values = table.read_row_group(group, columns=[column]).column(0)
                    if pyarrow.types.is_dictionary(kind):
                        # Decoded, because the size of a dictionary does not give the size of its rows.
                        values = values.cast(kind.value_type)
                    step = max(1, length * block_bytes // max(1, values.nbytes))
                    for first in range(max(0, start - row), length, step):
                        last = min(first + step, length)
                        yield values.slice(first, last - first).to_pylist(), row + first, row + last, total
                row += length
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        why = str(error).partition("\n")[0]
        raise RunError(f"{path} is not valid Parquet ({why}); fetch it again") from None
    except OSError as error:
        raise RunError(f"{path} is not valid Parquet ({reason(error)}); fetch it again") from None


def _kind(path: str, column: str, schema: Any) -> Any:
    import pyarrow

    found = schema.get_all_field_indices(column)
    if not found:
        raise UserError(
            f"{path} has no column {column!r}; it has {', '.join(schema.names) or 'none'}: choose one with --text-key"
        )
    if len(found) > 1:
        raise UserError(f"{path} has {len(found)} columns {column!r}; rename all but one")
    kind = schema.field(found[0]).type
    value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    types = pyarrow.types
    known = (
        types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary,
        types.is_binary_view, types.is_null,
    )  # fmt: skip
    if not any(test(value) for test in known):
        raise UserError(f"{path}: column {column!r} holds {kind}; expected text (string, binary or a dictionary of it)")
    return kind


class Reader(io.RawIOBase):
    """A file for pyarrow, through `OpenFile`. pyarrow's own reader maps some files into memory, and its errors name no
    file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = OpenFile(path)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._file.size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        data = self._file.bytes_at(self._at, count)
        self._at += count
        return data
