"""Packaging of ``ser-toolkit``; versions that are tested together are pinned in ``constraints.txt``."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1] for line in (ROOT / "ser/__init__.py").read_text().splitlines() if line.startswith("__version__")
)

setup(
    name="ser-toolkit",
    version=VERSION,
    description="Audio-only speech emotion recognition on CREMA-D and RAVDESS, without the field's usual leaks",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    keywords="speech emotion recognition, SER, audio, HuBERT, Whisper, ECAPA-TDNN, CREMA-D, RAVDESS",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Typing :: Typed",
    ],
    packages=["ser"],
    package_data={"ser": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.9,<2.12",
        "torchaudio>=2.9,<2.12",
        "gin-config>=0.5,<0.6",
        "transformers>=5.0,<6",
        "speechbrain>=1.1,<2",
        "numpy>=1.26",
        "soundfile>=0.13",
        "scikit-learn>=1.4",
        "wandb>=0.18",
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "httpx>=0.27",
    ],
    extras_require={
        "bench": ["audiomentations>=0.40", "torch-audiomentations>=0.12"],
        "dev": [
            "build>=1.2",
            "hypothesis>=6",
            "mypy>=1.10",
            "moto[s3,server]>=5",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "pytest>=8",
            "pytest-xdist>=3.8",
            "ruff>=0.6",
            "s3fs>=2025.1",
            "setuptools>=70",
        ],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18"],
        "s3": ["s3fs>=2025.1"],
    },
    entry_points={"console_scripts": ["ser=ser.cli:main"]},
)
