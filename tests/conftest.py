"""The tests run on the reactor of the daemon; it must be there before pytest-twisted picks another."""

import sys

if "twisted.internet.reactor" not in sys.modules:
    from apigw.net.reactor import install

    install()
