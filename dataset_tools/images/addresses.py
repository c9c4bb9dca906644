"""Which network addresses a download may reach.

A URL comes from a dataset that anyone may have written. It must not make this machine talk to
itself or to its own network, by whatever spelling, redirect or answer of a name server.
"""

import ipaddress
import socket

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 as networks without it reach it


class RefusedAddressError(Exception):
    """A host that must not be reached; the text says which address, and why."""


def address_fault(address: str | IPAddress) -> str | None:
    """Why an IP address must not be reached ("loopback", "private", ...); None if it is public.

    An IPv4 address inside an IPv6 one (mapped, NAT64, 6to4, Teredo) is judged as IPv4 as well.

    >>> address_fault("::ffff:127.0.0.1"), address_fault("8.8.8.8")
    ('loopback', None)
    """
    ip = ipaddress.ip_address(address) if isinstance(address, str) else address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return address_fault(ip.ipv4_mapped)
        if ip in NAT64:
            return address_fault(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if ip.is_site_local:  # Python counts these, which RFC 3879 retired, as global
            return "private"
        for inner in filter(None, [ip.sixtofour, *(ip.teredo or ())]):
            if fault := address_fault(inner):
                return fault
    for kind in ("unspecified", "loopback", "link_local", "multicast", "reserved", "private"):
        if getattr(ip, f"is_{kind}"):
            return kind.replace("_", "-")
    return None if ip.is_global else "not public"


def resolve(host: str, port: int, allow_private: bool) -> list[str]:
    """IP addresses of `host` that may be reached, in the resolver's order.

    Raises:
        RefusedAddressError: it has addresses, none of which may be reached.
        OSError: the name does not resolve.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    faults = {str(sockaddr[0]): None for *_, sockaddr in found}
    if not allow_private:
        faults = {address: address_fault(address) for address in faults}
    allowed = [address for address, fault in faults.items() if fault is None]
    if not allowed:
        address, fault = next(iter(faults.items()))
        raise RefusedAddressError(f"{host} is the {fault} address {address}")
    return allowed
