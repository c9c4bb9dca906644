"""The part of the build that is code: `properties/` lies beside the package, ships inside it."""

from setuptools import find_packages, setup

PACKAGES = ["recbole_tema", "recbole_tema.*", "dataset_tools", "dataset_tools.*"]

setup(
    packages=[*find_packages(include=PACKAGES), "recbole_tema.properties"],
    package_dir={"recbole_tema.properties": "properties"},
    package_data={
        "recbole_tema.properties": ["*.yaml", "*/*.yaml", "*/*/*.yaml"],
        "recbole_tema": ["page.html", "benchmark/report.html"],
        "dataset_tools": ["prompts/*.yaml", "shipped/*/*", "describe/*.html"],
    },
)
