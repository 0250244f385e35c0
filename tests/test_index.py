"""data_prep/build/index.py: joining parts in place gives the same file as writing the whole index."""

from data_prep.build.index import join_parts, write_index
from data_prep.build.shard_writer import read_part
from src.data.shards import SCHEMA, Shards


def test_joined_parts_equal_the_index_written_at_once(shards, tmp_path):
    for source in ("alpha", "beta", "gamma"):  # one image, several, none
        opened = Shards(shards / source)
        parts = [read_part(shards / source, tar["name"].removesuffix(".tar")) for tar in opened.manifest["shards"]]
        assert len(parts) == 3
        join_parts(tmp_path / "joined", parts)
        write_index(tmp_path / "written", {field.name: opened.arrow(field.name) for field in SCHEMA})
        files = [folder / "index.arrow" for folder in (tmp_path / "joined", tmp_path / "written")]
        assert files[0].read_bytes() == files[1].read_bytes()
