"""Documents from files."""

import gzip
import json
import lzma

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data import text_files
from bert_jax.data.documents import MAX_PIECE_CHARACTERS, Tally
from bert_jax.data.file_lines import COMPRESSIONS, json_rows, read_text, uncompressed_suffix
from bert_jax.data.text_files import TextFiles, find_files
from bert_jax.errors import UserError

COMPRESS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def documents(*paths, tally=None, **options):
    """Whole documents, put together from their passages."""
    found = []
    for text, starts_document in TextFiles("test", paths, **options).passages(tally or Tally()):
        if starts_document:
            found.append("")
        found[-1] += text
    return found


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_of_every_format(tmp_path, suffix):
    text = tmp_path / f"a.txt{suffix}"
    text.write_bytes(COMPRESS[suffix]("Grüße.\n\nTwo.\n".encode()))
    lines = tmp_path / f"b.jsonl{suffix}"
    rows = [{"text": "One é"}, {"text": "Two", "other": 3}, {"text": " "}]
    lines.write_bytes(COMPRESS[suffix]("\n".join(map(json.dumps, rows)).encode()))
    tally = Tally()
    assert documents(text, lines, tally=tally) == ["Grüße.\n\nTwo.\n", "One é", "Two"]
    assert documents(text, lines, unit="blank_line") == ["Grüße.", "Two.\n", "One é", "Two"]
    assert tally.disk_bytes == text.stat().st_size + lines.stat().st_size
    assert TextFiles("x", (text, lines)).disk_bytes == tally.disk_bytes


def test_several_compressed_parts_make_one_file(tmp_path):
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(compress(b"one ") + compress(b"two"))
        assert documents(path) == ["one two"], suffix


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(["a", "é", "中", "\n", "\n\n", " ", "\r\n\r\n", "😀"]), max_size=60)
)
def test_documents_do_not_depend_on_the_size_of_blocks(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes("".join(parts).encode())
    expected = ["".join(document.split()) for document in documents(path, unit="blank_line")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "MAX_PIECE_CHARACTERS", 8)
        small = documents(path, unit="blank_line")
        assert ["".join(document.split()) for document in small] == expected
        assert "".join(documents(path)).split() == "".join(parts).split()


def test_large_files_come_in_bounded_pieces(tmp_path):
    path = tmp_path / "a.txt"
    for unit, line in (("file", "a line\n"), ("blank_line", "a line\n"), ("file", "中")):
        text = line * (3 * MAX_PIECE_CHARACTERS // len(line))
        path.write_text(text, encoding="utf-8")
        passages = list(TextFiles("x", (path,), unit).passages(Tally()))
        assert [passage.starts_document for passage in passages].count(True) == 1
        assert max(len(passage.text) for passage in passages) <= MAX_PIECE_CHARACTERS
        assert "".join(passage.text for passage in passages).split() == text.split()


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfHello")
    assert documents(path) == ["Hello"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "Hello"}\n')
    assert documents(path) == ["Hello"]


@pytest.mark.parametrize("before", [0, 5, 3 * MAX_PIECE_CHARACTERS])
def test_bytes_that_are_not_utf8_are_named_or_left_out(tmp_path, before):
    path = tmp_path / "latin1.txt"
    good = b"abcd\n" * (before // 5)
    path.write_bytes(good + "schön\n".encode("latin-1") + b"end")
    offset = len(good) + 3
    with pytest.raises(UserError, match=f"latin1.txt is not UTF-8: byte 0xf6 at offset {offset}"):
        documents(path)
    tally = Tally()
    (document,) = documents(path, tally=tally, bad_input="skip")
    assert document == good.decode() + "end"
    assert tally.skipped == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": ', "is not a line of JSON"),
        (b'{"body": "x"}', "has no key 'text'"),
        (b'{"text": 3}', "has no text under the key 'text'"),
        (b'["x"]', "is not a JSON object"),
        (b'{"text": "\xff"}', "is not UTF-8: byte 0xff at offset 27"),
    ],
)
def test_bad_lines_of_json_are_named_or_left_out(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "better"}\n')
    with pytest.raises(UserError, match=reason) as caught:
        documents(path)
    assert str(path) in str(caught.value)
    assert "byte 17," in str(caught.value) or "offset 27" in str(caught.value)
    tally = Tally()
    assert documents(path, tally=tally, bad_input="skip") == ["good", "better"]
    assert tally.skipped == 1


def test_another_text_field(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"body": "x"}\n')
    assert documents(path, text_field="body") == ["x"]


def test_json_lines_longer_than_a_block(tmp_path):
    path = tmp_path / "a.jsonl"
    long = "word " * MAX_PIECE_CHARACTERS
    path.write_text(f"{json.dumps({'text': long})}\n{json.dumps({'text': 'short'})}\n")
    assert documents(path) == [long, "short"]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_broken_archives_are_named_or_left_out(tmp_path, suffix):
    broken, good = tmp_path / f"a.txt{suffix}", tmp_path / "b.txt"
    broken.write_bytes(b"this is no archive")
    good.write_text("good")
    with pytest.raises(UserError, match=f"a.txt{suffix} is a broken {suffix} file"):
        documents(broken, good)
    tally = Tally()
    assert documents(broken, good, tally=tally, bad_input="skip") == ["good"]
    assert tally.skipped == 1


def test_finding_files(tmp_path):
    for name in ("b.txt", "a.txt.gz", "deep/c.jsonl", "image.png", "deep/er/d.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path))]
    assert names == ["a.txt.gz", "b.txt", "deep/c.jsonl", "deep/er/d.md"]
    assert find_files(f"{tmp_path}/*.txt") == (tmp_path / "b.txt",)
    assert len(find_files(f"{tmp_path}/**/*.md")) == 1
    assert find_files(f"{tmp_path}/image.png") == (tmp_path / "image.png",)
    with pytest.raises(UserError, match=r"No file matches --input '.*\*\.csv'"):
        find_files(f"{tmp_path}/*.csv")
    disk = tmp_path / "disk"
    (disk / "other").mkdir(parents=True)
    (disk / "other/E.TXT").touch()
    for link, place in (("deep/more", disk / "other"), ("disk/round", disk)):
        (tmp_path / link).symlink_to(place)
    assert [path.name for path in find_files(f"{tmp_path}/deep")] == ["c.jsonl", "d.md", "E.TXT"]
    assert find_files(str(disk)) == (disk / "other/E.TXT",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files ending in"):
        find_files(f"{tmp_path}/empty")


def test_half_a_surrogate_pair_is_bad_input(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n{"text": "bad \\ud83d"}\n')
    with pytest.raises(UserError, match="half of a surrogate pair"):
        documents(path)
    tally = Tally()
    assert len(documents(path, tally=tally, bad_input="skip")) == 1
    assert tally.skipped == 1


@pytest.mark.parametrize("suffix", COMPRESS)
def test_suffixes_may_be_capital_letters(tmp_path, suffix):
    path = tmp_path / f"A.JSONL{suffix.upper()}"
    path.write_bytes(COMPRESS[suffix](b'{"text": "here"}\n'))
    assert documents(path) == ["here"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_whole_files(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    text = "Grüße\r\n\u2028 " * 100_000
    path.write_bytes(COMPRESS[suffix](b"\xef\xbb\xbf" + text.encode()))
    assert read_text(path) == text
    assert uncompressed_suffix(path) == ".txt"


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@given(
    texts=st.lists(st.binary(max_size=20_000), min_size=1, max_size=4),
    padding=st.integers(0, 2),
    cut=st.floats(0, 1, exclude_max=True),
)
def test_half_an_archive_is_no_archive(tmp_path_factory, suffix, texts, padding, cut):
    # Frames of their own, as parts that were compressed one by one and joined.
    frames = [COMPRESS[suffix](text.hex().encode()) for text in texts]
    path = tmp_path_factory.mktemp("archives") / f"a.txt{suffix}"
    path.write_bytes(b"".join(frame + bytes(4 * padding) for frame in frames))
    assert read_text(path) == b"".join(texts).hex()
    last = frames[-1][: int(cut * len(frames[-1]))]
    path.write_bytes(b"".join([*frames[:-1], last]))
    if last or not frames[:-1]:
        with pytest.raises(UserError, match=f"a.txt{suffix} is a broken {suffix} file"):
            read_text(path)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_zeros_are_no_archive(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"  # as a copy that failed leaves it
    for content in (bytes(10_000), bytes(64) + COMPRESS[suffix](b"text")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"a.txt{suffix} is a broken {suffix} file"):
            read_text(path)


@given(damaged=st.integers(0, 9), place=st.floats(0, 1, exclude_max=True))
def test_damage_in_any_stream_is_found(tmp_path_factory, damaged, place):
    streams = [lzma.compress(f"line {number}\n".encode() * 500) for number in range(10)]
    stream = bytearray(streams[damaged])
    stream[int(place * len(stream))] ^= 1
    streams[damaged] = bytes(stream)
    path = tmp_path_factory.mktemp("archives") / "a.txt.xz"
    path.write_bytes(b"".join(streams))
    with pytest.raises(UserError, match=r"a.txt.xz is a broken .xz file"):
        read_text(path)


def test_frames_of_a_long_history_are_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    path = tmp_path / "a.txt.zst"
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path.write_bytes(compressor.compress(b"long") + compressor.flush())
    assert read_text(path) == "long"


def test_whole_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none.txt cannot be read \(No such file"):
        read_text(tmp_path / "none.txt")
    broken = tmp_path / "a.gz"
    broken.write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(UserError, match=r"a.gz is a broken .gz file"):
        read_text(broken)
    (tmp_path / "latin1.txt").write_bytes("schön".encode("latin-1"))
    with pytest.raises(UserError, match="latin1.txt is not UTF-8: byte 0xf6 at offset 3"):
        read_text(tmp_path / "latin1.txt")


def test_rows_of_json(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"a": 1}, {"b": "\u2028 \\u"}, {"c": "😀"}]
    path.write_text("\n \n".join(map(json.dumps, rows)) + "\n")
    read = list(json_rows(path))
    assert [row for _, row in read] == rows
    assert [where for where, _ in read] == [f"{path}, line {number}" for number in (1, 3, 5)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": ', "line 2 is not JSON"),
        ("[1]", "line 2 is JSON, but no object"),
        ('{"a": "\\ud83d"}', "line 2 has half of a surrogate pair"),
    ],
)
def test_bad_rows_of_json_are_named(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(UserError, match=f"a.jsonl, {reason}"):
        list(json_rows(path))
