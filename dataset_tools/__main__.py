"""`python -m dataset_tools`: build and enrich datasets of RecBole atomic files."""

from dataset_tools.cli import main

if __name__ == "__main__":
    main(prog_name="python -m dataset_tools")
