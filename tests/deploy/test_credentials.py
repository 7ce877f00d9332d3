"""Passwords: made once, kept, for their owner only; hashes that Mosquitto itself accepts."""

import shutil
import subprocess
from pathlib import Path

import pytest

from contract.errors import SettingsError
from deploy.credentials import hash_line, load_or_create, password_file, verify


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_passwords_are_made_once_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "credentials"
    first = load_or_create(folder, ["a", "b"])
    assert load_or_create(folder, ["b", "a", "c"]) | first == load_or_create(folder, "abc")
    assert len(set(load_or_create(folder, "abc").values())) == 3
    assert all(len(password) == 32 for password in first.values())
    assert mode(folder) == 0o700
    assert {mode(file) for file in folder.iterdir()} == {0o600}


def test_files_that_others_could_read_are_closed_again(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    before = load_or_create(folder, ["a"])
    folder.chmod(0o755)
    (folder / "a").chmod(0o644)
    assert load_or_create(folder, ["a"]) == before
    assert (mode(folder), mode(folder / "a")) == (0o700, 0o600)


def test_a_password_of_one_s_own_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("my-own-password\r\n")
    assert load_or_create(tmp_path, ["a"]) == {"a": "my-own-password"}


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"two words here", b"a" * 300, b"\xff"])
def test_a_file_that_holds_no_password_is_told_without_its_content(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SettingsError, match="delete the file") as caught:
        load_or_create(tmp_path, ["a"])
    for word in ("short", "two words", "aaaa"):
        assert word not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="may write"):
        load_or_create(tmp_path / "file", ["a"])


def test_our_hash_is_the_one_that_mosquitto_passwd_makes(tmp_path: Path) -> None:
    program = shutil.which("mosquitto_passwd")
    assert program, "mosquitto_passwd is missing: apt install mosquitto"
    file = tmp_path / "passwords"
    subprocess.run([program, "-c", "-b", file, "pi-0", "a-pass-word"], check=True)
    (theirs,) = file.read_text().splitlines()
    assert verify(theirs, "pi-0", "a-pass-word")
    assert not verify(theirs, "pi-0", "a-pass-worD")
    assert not verify(theirs, "pi-1", "a-pass-word")
    assert [len(p) for p in theirs.split("$")][1:2] == [1]
    ours = hash_line("pi-0", "a-pass-word")
    assert [len(p) for p in ours.split("$")][3:] == [len(p) for p in theirs.split("$")][3:]


def test_a_hash_is_frozen() -> None:
    line = hash_line("u", "p", b"twelve bytes")
    assert line == (
        "u:$7$1000$dHdlbHZlIGJ5dGVz$"
        "jep8t1X/I7oCVkQKqpllAHevsIDb5r2wveFvv0seqBN9PeesXwi1oWPBxBOV0et9beJPZojY7FegChA8XC7B1Q=="
    )


def test_lines_are_kept_while_their_password_is(tmp_path: Path) -> None:
    first = password_file({"a": "password-a", "b": "password-b"})
    assert password_file({"a": "password-a", "b": "password-b"}, first) == first
    second = password_file({"a": "password-a", "b": "another-one", "c": "password-c"}, first)
    assert second.splitlines()[0] == first.splitlines()[0]
    assert second.splitlines()[1] != first.splitlines()[1]
    users = [line.partition(":")[0] for line in second.splitlines()]
    assert users == ["a", "b", "c"]
    assert password_file({"b": "password-b"}, first).splitlines() == first.splitlines()[1:]


@pytest.mark.parametrize(
    "line",
    [
        *("", "a", "a:", "a:$7$", "a:$6$salt$hash", "a:$7$0$AAAA$AAAA", "a:$7$-1$AAAA$AAAA"),
        *("a:$7$x$AAAA$AAAA", "a:$7$1000$!$AAAA", "a:$7$1000$AAAA$!", "a:$7$99999999999$AA==$AA=="),
        *("a:$7$1000$AAAA$", "a:$7$²$AAAA$AAAA", "a:$7$1000$é$AAAA"),
    ],
)
def test_a_line_that_is_none_is_made_again(line: str) -> None:
    assert not verify(line, "a", "password-a")
    (made,) = password_file({"a": "password-a"}, line + "\n").splitlines()
    assert verify(made, "a", "password-a")
