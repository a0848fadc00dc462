"""Modes of results and of their sources."""

import pytest

from lora_tools.files.private import allowed, restrict


@pytest.mark.parametrize(
    ("modes", "mask"),
    [
        ([], 0o777),
        ([0o644], 0o777),
        ([0o444, 0o755], 0o777),
        ([0o640], 0o770),
        ([0o604], 0o707),
        ([0o640, 0o604], 0o700),
        ([0o644, 0o600], 0o700),
    ],
)
def test_a_result_may_be_read_by_who_may_read_every_source(tmp_path, modes, mask):
    sources = [tmp_path / str(number) for number in range(len(modes))]
    for source, mode in zip(sources, modes, strict=True):
        source.write_text("")
        source.chmod(mode)
    assert allowed([*sources, tmp_path / "missing"]) == mask


def test_every_file_of_a_folder_is_restricted_and_what_links_lead_to_is_not(tmp_path):
    (tmp_path / "source").write_text("")
    (tmp_path / "source").chmod(0o600)
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "elsewhere").chmod(0o644)
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    files = [folder / "a", folder / "deeper" / "b"]
    for file in files:
        file.write_text("")
        file.chmod(0o644)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    restrict(folder, [tmp_path / "source"])
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o644
