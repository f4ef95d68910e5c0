"""`twistd apigw`: tells twistd where the service is. Nothing else belongs here."""

from twisted.application.service import ServiceMaker

apigw = ServiceMaker("apigw", "apigw.service", "An API gateway: TLS, JWT, rate limits, routing, proxying.", "apigw")
