"""The journal's file: an SQLite database in WAL mode, its tables, and what can be wrong with it.

Format 1 has five tables. `about` says what the journal is of; `starts` lists the epoch of every
start of the client; `batches` has a row for each batch, `results` one for each that has a result,
`inputs` the input of each open or dead batch whose source cannot be read again. Messages are kept
as they travelled (docs/wire-format.md), checksum included.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.errors import JournalError

APPLICATION_ID = 0x53484A31
"""`SHJ1` in the file's header: `file` and SQLite's tools can tell it from another database."""
FORMAT_VERSION = 1

TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE starts (number INTEGER PRIMARY KEY, epoch TEXT NOT NULL UNIQUE);
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY,
    born INTEGER NOT NULL REFERENCES starts (number),
    place INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('new', 'sent', 'done', 'dead')),
    attempt INTEGER NOT NULL,
    deadline_s REAL,
    strikes INTEGER NOT NULL,
    names TEXT NOT NULL,
    labels TEXT NOT NULL,
    images INTEGER NOT NULL,
    first INTEGER,
    end INTEGER,
    reason TEXT,
    detail TEXT,
    redriven_as INTEGER
);
CREATE TABLE results (
    seq INTEGER PRIMARY KEY REFERENCES batches (seq),
    latency_ms REAL NOT NULL,
    message BLOB NOT NULL
);
CREATE TABLE inputs (seq INTEGER PRIMARY KEY REFERENCES batches (seq), message BLOB NOT NULL);
"""
"""``born``: the start that gave the number. ``place``: the batch's turn among the inputs, which a
re-driven batch takes over. ``names`` and ``labels``: JSON, one entry an image. ``first``, ``end``:
half-open, in the source. ``deadline_s``: what the latest attempt was given, of the time in which
anything could be delivered at all."""

_REMEDIES = {
    "SQLITE_FULL": "the disk is full: free space, and run the same again",
    "SQLITE_NOTADB": "this is no journal: name another file, or move this one away",
    "SQLITE_CORRUPT": "the file is damaged: move it away and begin a new one, or restore a copy",
    "SQLITE_READONLY": "the file or its folder cannot be written: check who may, or name another",
    "SQLITE_CANTOPEN": "the folder must be there and writable: check it, or name another file",
    "SQLITE_BUSY": "another process writes it: wait for it, or stop it",
    "SQLITE_PERM": "the file or its folder cannot be written: check who may, or name another",
    "SQLITE_IOERR": "the disk failed or is full: check it (`dmesg`, `df`), and run the same again",
}


@contextmanager
def naming_the_file(path: Path, what: str) -> Iterator[None]:
    """Turn what SQLite or the system says into one sentence with a remedy.

    Raises:
        JournalError: for every error of either.
    """
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")  # extended: SQLITE_IOERR_WRITE and the like
        kind = "_".join(name.split("_")[:2])
        remedy = _REMEDIES.get(kind, "move the file away, or restore a copy")
        raise JournalError(f"journal {path}: {what}: {error}; {remedy}") from error
    except OSError as error:
        raise JournalError(
            f"journal {path}: {what}: {error.strerror or error}; the folder must be there and "
            "writable: check it, or name another file"
        ) from error


@contextmanager
def transaction(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """All that is written inside, or nothing of it.

    Raises:
        JournalError: it cannot be written, as when the disk is full.
    """
    with naming_the_file(path, "cannot be written"):
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # SQLite has rolled back some failures itself
                database.execute("ROLLBACK")
            raise


def connect_to_write(path: Path, synchronous: str) -> sqlite3.Connection:
    """Open a journal, or make one where there is no file or an empty one.

    Args:
        path: the file.
        synchronous: NORMAL or FULL, of SQLite's pragma: https://sqlite.org/pragma.html.

    Raises:
        JournalError: another kind of file, a damaged one, or one that cannot be written.
    """
    with naming_the_file(path, "cannot be opened"):
        database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        try:
            _check_format(database, path, may_be_empty=True)
            (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise JournalError(
                    f"journal {path}: its file system cannot share memory (SQLite's WAL mode); put "
                    "the file on a local disk"
                )
            database.execute(f"PRAGMA synchronous = {synchronous}")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                database.executescript(
                    f"BEGIN IMMEDIATE;{TABLES}PRAGMA application_id = {APPLICATION_ID};"
                    f"PRAGMA user_version = {FORMAT_VERSION};COMMIT;"
                )
        except BaseException:
            database.close()
            raise
        return database


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a journal to read; its writer may go on meanwhile.

    Raises:
        JournalError: no such file, another kind of file, or a damaged one.
    """
    if not path.is_file():
        raise JournalError(
            f"journal {path}: no such file; expected what `shardline infer --journal` wrote"
        )
    with naming_the_file(path, "cannot be read"):
        uri = f"{path.resolve().as_uri()}?mode=ro"
        database = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
        try:
            _check_format(database, path, may_be_empty=False)
        except BaseException:
            database.close()
            raise
        return database


def _check_format(database: sqlite3.Connection, path: Path, *, may_be_empty: bool) -> None:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if may_be_empty and (application, version, tables) == (0, 0, 0):
        return
    if application != APPLICATION_ID:
        raise JournalError(
            f"journal {path}: an SQLite database, but not a journal of Shardline; name another file"
        )
    if version != FORMAT_VERSION:
        raise JournalError(
            f"journal {path}: format {version}, expected {FORMAT_VERSION}; finish it with the "
            "version of Shardline that began it"
        )
