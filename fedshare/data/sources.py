"""Sources of the published data sets: addresses, checksums and file names.

Checksums are those recorded by publishers or common libraries: MNIST, Fashion-MNIST and CIFAR as in torchvision, SST-2
and the SST's archive as in torchtext, Movie Review as in Hugging Face's `datasets`. For Tiny Shakespeare it is the one
that the many users of that address agree on. None is published for stories260K: they were computed from its files.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Files published together: individually or in an archive.

    A file named ``x.gz`` may also be on disk unpacked, as ``x``.
    """

    folder: str  # the folder of the files under the root, and the target of a download
    files: dict[str, str]  # name -> checksum of the published file; "" if none is published
    addresses: tuple[str, ...]  # tried in turn: an archive, or the address to which a file's name is appended
    archive: str = ""  # checksum of the archive; "" if files are published individually
    inside: str = ""  # the archive's folder with these files, also searched under the root

    @property
    def names(self) -> list[str]:
        """The required files: each name without ``.gz``."""
        return list(dict.fromkeys(name.removesuffix(".gz") for name in self.files))


MNIST = Source(
    folder="MNIST/raw",
    files={
        "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
        # The four above, unpacked.
        "train-images-idx3-ubyte": "md5:6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "md5:a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "md5:2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "md5:27ae3e4e09519cfbb04c329615203637",
    },
    addresses=("https://ossci-datasets.s3.amazonaws.com/mnist/",),
)

FASHION_MNIST = Source(
    folder="FashionMNIST/raw",
    files={
        "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    },
    addresses=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
)

CIFAR10 = Source(
    folder="cifar-10-batches-py",
    files={
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    },
    addresses=("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    archive="md5:c58f30108f718f92721af3b95e74349a",
    inside="cifar-10-batches-py",
)

CIFAR100 = Source(
    folder="cifar-100-python",
    files={"train": "md5:16019d7e3df5f24257cddd939b257f8d", "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"},
    addresses=("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    archive="md5:eb9058c3a382ffc7106e4002c42a8d85",
    inside="cifar-100-python",
)

SST2 = Source(
    folder="sst2-glue",
    files={"train.tsv": "md5:da409a0a939379ed32a470bc0f7fe99a", "dev.tsv": "md5:268856b487b2a31a28c0a93daaff7288"},
    addresses=("https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",),
    archive="md5:9f81648d4199384278b86e315dac217c",
    inside="SST-2",
)

SST_TREES = Source(
    folder="sst-trees",
    # No checksum is published: these are of files with the sizes in the archive's own list.
    files={"train.txt": "md5:b12d531b1b913a3bb49719ba5cc1f67a", "test.txt": "md5:97b75f6ca1ae58b4d52fbf9381dc6f8c"},
    addresses=("https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip",),
    archive="md5:5c3b23ce88089053fd3efeb4a34f614d",
    inside="trees",
)

MOVIE_REVIEW = Source(
    folder="mr-rt-polarity",
    files={"rt-polarity.pos": "", "rt-polarity.neg": ""},  # copies in several encodings exist
    # Cornell gives no checksum. The one below was recorded for the second address, which mirrors the first.
    addresses=(
        "https://www.cs.cornell.edu/people/pabo/movie-review-data/rt-polaritydata.tar.gz",
        "https://storage.googleapis.com/seldon-datasets/sentence_polarity_v1/rt-polaritydata.tar.gz",
    ),
    archive="sha256:a05befe52aafda71d458d188a1c54506a998b1308613ba76bbda2e5029409ce9",
    inside="rt-polaritydata",
)

TINY_SHAKESPEARE = Source(
    folder="tiny-shakespeare",
    files={"input.txt": "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
    addresses=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
)

STORIES260K = Source(
    folder="weights/stories260K",
    files={  # the model first: if the tokenizer is there, an interrupted download has both
        "stories260K.bin": "sha256:b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696",
        "tok512.bin": "sha256:037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312",
    },
    addresses=("https://huggingface.co/karpathy/tinyllamas/resolve/main/stories260K/",),
)
