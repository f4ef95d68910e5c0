"""apigwctl, the operator's tool: one module a verb, main.py the list of them. Blocks; knows no Twisted."""
