"""`python -m couchjobs` is `couchjobs`."""

from couchjobs.cli.app import main

main()
