"""The texts of images, as ComfyUI, A1111 and cameras write them."""

import json
import zlib
from io import BytesIO

import pytest
from judges import judge

from lora_tools.errors import RefusedError
from lora_tools.verbs.push.texts import texts
from lora_tools.verbs.push.texts.text import LIMIT

IMAGE = judge("PIL.Image")
PNG = judge("PIL.PngImagePlugin")
WORKFLOW = json.dumps({"1": {"inputs": {"lora": "the secret"}}})
USER_COMMENT, DESCRIPTION = 0x9286, 0x010E


def saved(form, **options):
    file = BytesIO()
    IMAGE.effect_noise((64, 64), 90).save(file, form, **options)
    return file.getvalue()


def found(name, data):
    return "\n".join(text.text for text in texts(name, data))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["add_text", "add_itxt"])
def test_text_chunks_of_a_png(kind, packed):
    info = PNG.PngInfo()
    getattr(info, kind)("workflow", WORKFLOW, zip=packed)
    (text,) = texts("a.png", saved("PNG", pnginfo=info))
    assert WORKFLOW in text.text
    assert text.place == "text workflow"


def exif(comment):
    record = IMAGE.Exif()
    record[DESCRIPTION] = "made by the secret"
    record.get_ifd(0x8769)[USER_COMMENT] = comment
    return record


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_exif_comments_as_unicode_and_as_ascii(form, order):
    data = saved(form, exif=exif(b"UNICODE\0" + WORKFLOW.encode(order)))
    text = found("a.img", data)
    assert "made by the secret" in text
    assert WORKFLOW[1:-1] in text


def test_comments_and_xmp_of_a_jpeg():
    data = saved("JPEG", comment=b"the secret", xmp=b"<x:xmpmeta>another secret</x:xmpmeta>")
    assert "the secret" in found("a.jpg", data)
    assert "another secret" in found("a.jpg", data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_pixels_are_not_text(form):
    assert len(found("a.img", saved(form))) < 100


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_what_follows_the_image_is_searched():
    assert "the secret" in found("a.png", saved("PNG") + b"\0\0the secret\0")


def test_a_bomb_is_refused_without_being_unpacked():
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range((LIMIT >> 20) + 2))
    data = saved("PNG")[:-12] + chunk(b"zTXt", b"workflow\0\0" + packed + packer.flush())
    assert len(data) < 1 << 20
    with pytest.raises(RefusedError, match=r"a\.png: its zTXt chunks hold more than 64 MiB"):
        found("a.png", data)


def test_many_small_bombs_are_one():
    half = zlib.compress(bytes(LIMIT // 2 + 1), 9)
    bombs = chunk(b"zTXt", b"a\0\0" + half) + chunk(b"iTXt", b"b\0\1\0\0\0" + half)
    with pytest.raises(RefusedError, match="iTXt chunks hold more"):
        found("a.png", saved("PNG")[:-12] + bombs)


def test_a_damaged_chunk_is_refused():
    data = saved("PNG")[:-12] + chunk(b"zTXt", b"a\0\0no stream")
    with pytest.raises(RefusedError, match=r"a\.png: its zTXt chunk is damaged"):
        found("a.png", data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_ends_where_it_ends(form):
    data = saved(form, exif=exif(b"ASCII\0\0\0x"))
    for stop in range(0, len(data), 7):
        list(texts("a.img", data[:stop]))
