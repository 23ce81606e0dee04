"""Reads whole rows of Parquet files and of Arrow files, as the Hub's library ``datasets`` keeps data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpt3_jax.data.files import reason
from gpt3_jax.data.parquet import Reader
from gpt3_jax.errors import RunError, UserError

_ROWS = 1024
_FILE_FORMAT = b"ARROW1"


def rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a file whose name ends in .parquet or .arrow (Arrow's stream or file format), as Python values.

    Raises:
      UserError: pyarrow is not installed, or the file is not there.
      RunError: the file is damaged or cannot be read.
    """
    parquet = path.lower().endswith(".parquet")
    kind = "Parquet" if parquet else "Arrow"
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.ipc  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(
            f"{path} is {kind}, which needs the package pyarrow: pip install -c constraints.txt -e '.[data]'"
        ) from None
    try:
        if parquet:
            with pyarrow.parquet.ParquetFile(Reader(path)) as table:
                for batch in table.iter_batches(_ROWS):
                    yield from batch.to_pylist()
        elif Reader(path).read(len(_FILE_FORMAT)) == _FILE_FORMAT:
            with pyarrow.ipc.open_file(Reader(path)) as file:
                for number in range(file.num_record_batches):
                    yield from file.get_batch(number).to_pylist()
        else:
            with pyarrow.ipc.open_stream(Reader(path)) as stream:
                for batch in stream:
                    yield from batch.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        why = str(error).partition("\n")[0]
        raise RunError(f"{path} is not valid {kind} ({why}); fetch it again") from None
    except OSError as error:
        raise RunError(f"{path} is not valid {kind} ({reason(error)}); fetch it again") from None
