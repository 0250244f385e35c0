"""Croissant metadata of a mix (MLCommons, format 1.0): its tars with checksums, and the fields of its records."""

import json
from typing import Any

import mlcroissant as mlc

from data_prep.card.facts import SourceFacts, phantom_sources, usage_restrictions

FIELDS = {
    "key": ("unique name of the record in its source", "$.key"),
    "split": ("train, val or test", "$.split"),
    "turns": ("questions with their answers", "$.turns"),
    "caption": ("text about the images of a record without questions", "$.caption"),
    "type": ("question type", "$.type"),
    "group": ("patient, slide, figure or image", "$.group"),
}
HOME = "https://github.com/gevaertlab/OpenMedQ"


def croissant(mix: str, facts: list[SourceFacts]) -> dict[str, Any]:
    """Metadata as JSON-LD; addresses are relative to the folder of the shards."""
    metadata = mlc.Metadata(
        name=f"openmedq-{mix}",
        description=f"The training mix '{mix}' of OpenMedQ: {', '.join(one.entry.title or one.entry.name for one in facts)}. "
        + phantom_sources(facts),
        license=[f"{one.entry.name}: {one.entry.licence.name}" for one in facts] + [usage_restrictions(facts)],
        url=HOME,
        cite_as="; ".join(one.entry.citation for one in facts if one.entry.citation),
        version="1.0.0",
        distribution=[part for one in facts for part in _files(one)],
        record_sets=[_records(one) for one in facts],
    )
    return json.loads(json.dumps(metadata.to_json(), default=str))


def _files(one: SourceFacts) -> list:
    name, shards = one.entry.name, one.shards.manifest["shards"]
    tars = [
        mlc.FileObject(
            id=f"{name}/{shard['name']}",
            name=f"{name}/{shard['name']}",
            content_url=f"{name}/{shard['name']}",
            content_size=f"{shard['bytes']} B",
            encoding_formats=["application/x-tar"],
            sha256=shard["sha256"],
        )
        for shard in shards
    ]
    ids = [tar.id for tar in tars]
    texts = mlc.FileSet(id=f"{name}-json", name=f"{name}-json", contained_in=ids, encoding_formats=["application/json"], includes="*.json")
    return [*tars, texts]


def _records(one: SourceFacts) -> mlc.RecordSet:
    name = one.entry.name
    fields = [
        mlc.Field(
            id=f"{name}/{field}",
            name=field,
            description=meaning,
            data_types=[mlc.DataType.TEXT],
            source=mlc.Source(file_set=f"{name}-json", extract=mlc.Extract(json_path=path)),
        )
        for field, (meaning, path) in FIELDS.items()
    ]
    return mlc.RecordSet(id=name, name=name, fields=fields)
