//! A NAT report as a person reads it.

use crate::control::event::nat::{Dependence, Family, Ip, Ports};

/// One property of the NATs.
pub(crate) struct Property {
    pub(crate) name: &'static str,
    /// In the terms of RFC 4787.
    pub(crate) value: String,
    /// In plain words; may be empty.
    pub(crate) meaning: &'static str,
}

/// All reports in one line.
pub(crate) fn line(families: &[Family]) -> String {
    match families {
        [] => "not known: no server has told yet".into(),
        families => families.iter().map(summary).collect::<Vec<_>>().join("; "),
    }
}

fn summary(family: &Family) -> String {
    let name = name(family.family);
    if !family.udp {
        return format!("{name}: no server answers over UDP");
    }
    let public = family.public.map_or_else(String::new, |public| format!(" {public}"));
    if family.untranslated {
        return format!("{name}{public}, not translated");
    }
    let carrier = if family.carrier == Some(true) { ", carrier's NAT" } else { "" };
    let told = [("mapping", mapping(family)), ("filtering", filtering(family)), ("ports", ports(family))];
    let told = told.into_iter().filter(|(_, value)| value != UNKNOWN);
    let told: String = told.map(|(what, value)| format!(", {what} {value}")).collect();
    format!("{name}{public}{carrier}{told}")
}

/// The report of one family, property by property.
pub(crate) fn properties(family: &Family) -> Vec<Property> {
    let property = |name, value, meaning| Property { name, value, meaning };
    if !family.udp {
        let meaning = "no server answers over UDP: a firewall drops it, or all servers are down";
        return vec![property("public address", "none".into(), meaning)];
    }
    let public = family.public.map_or_else(|| "told".into(), |public| public.to_string());
    let public = property("public address", public, "");
    let translated = match (family.untranslated, family.carrier) {
        (true, _) => property("translated by", "nobody".into(), "the address is this machine's own"),
        (false, Some(true)) => {
            property("translated by", "a NAT and the carrier's".into(), "only the nearer one can be configured")
        }
        (false, Some(false)) => property("translated by", "a NAT".into(), "no carrier's stands behind it"),
        (false, None) => property("translated by", "a NAT".into(), "whether a carrier's stands behind it is not known"),
    };
    let lifetime = family.lifetime_s.map_or_else(|| UNKNOWN.into(), |seconds| format!("at least {seconds} s"));
    let mut properties = vec![public, translated];
    if !family.untranslated {
        properties.push(property("mapping", mapping(family), mapping_meaning(family)));
    }
    properties.push(property("filtering", filtering(family), filtering_meaning(family)));
    if !family.untranslated {
        properties.extend([
            property("ports", ports(family), ports_meaning(family)),
            property("hairpin", hairpin(family), "whether hosts behind the NAT reach each other at public addresses"),
            property("idle mapping lives", lifetime, "what keep-alives follow; learned over minutes"),
        ]);
    }
    properties
}

const UNKNOWN: &str = "not known";

/// An address family's name.
pub(crate) fn name(family: Ip) -> &'static str {
    match family {
        Ip::Ipv4 => "IPv4",
        Ip::Ipv6 => "IPv6",
    }
}

fn word(dependence: Option<Dependence>) -> String {
    match dependence {
        Some(Dependence::EndpointIndependent) => "endpoint-independent",
        Some(Dependence::AddressDependent) => "address-dependent",
        Some(Dependence::AddressAndPortDependent) => "address-and-port-dependent",
        None => UNKNOWN,
    }
    .into()
}

fn mapping(family: &Family) -> String {
    word(family.mapping)
}

fn mapping_meaning(family: &Family) -> &'static str {
    match family.mapping {
        Some(Dependence::EndpointIndependent) => "one public port, wherever packets go",
        Some(Dependence::AddressDependent) => "another public port for each address that packets go to",
        Some(Dependence::AddressAndPortDependent) => "another public port for each address and port that packets go to",
        None => "needs the answers of two servers",
    }
}

fn filtering(family: &Family) -> String {
    word(family.filtering)
}

fn filtering_meaning(family: &Family) -> &'static str {
    match family.filtering {
        Some(Dependence::EndpointIndependent) => "lets anybody's packets in",
        Some(Dependence::AddressDependent) => "lets in packets from addresses that were sent to",
        Some(Dependence::AddressAndPortDependent) => "lets in packets from addresses and ports that were sent to",
        None => "needs a STUN server with two addresses (RFC 5780); taken for the strictest",
    }
}

fn ports(family: &Family) -> String {
    match (family.ports, family.step) {
        (Some(Ports::Preserving), _) => "preserving".into(),
        (Some(Ports::Sequential), Some(step)) => format!("sequential, step {step}"),
        (Some(Ports::Sequential), None) => "sequential".into(),
        (Some(Ports::Random), _) => "random".into(),
        (None, _) => UNKNOWN.into(),
    }
}

fn ports_meaning(family: &Family) -> &'static str {
    match family.ports {
        Some(Ports::Preserving) => "a new mapping gets the node's own port, if it is free",
        Some(Ports::Sequential) => "a new mapping gets the next port: it can be predicted",
        Some(Ports::Random) => "a new mapping gets any port: it can only be guessed",
        None => "too few answers came in order",
    }
}

fn hairpin(family: &Family) -> String {
    match family.hairpin {
        Some(true) => "yes",
        Some(false) => "no",
        None => UNKNOWN,
    }
    .into()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A family behind a hard NAT.
    pub(crate) fn hard() -> Family {
        Family {
            family: Ip::Ipv4,
            public: Some("198.51.100.1:7".parse().unwrap()),
            udp: true,
            untranslated: false,
            mapping: Some(Dependence::AddressAndPortDependent),
            filtering: None,
            ports: Some(Ports::Sequential),
            step: Some(-2),
            hairpin: Some(false),
            lifetime_s: None,
            carrier: Some(true),
        }
    }

    #[test]
    fn a_line_names_what_is_known_and_leaves_out_the_rest() {
        let blocked = Family { family: Ip::Ipv6, udp: false, public: None, ..hard() };
        let text = "IPv4 198.51.100.1:7, carrier's NAT, mapping address-and-port-dependent, ports sequential, step -2; \
                    IPv6: no server answers over UDP";
        assert_eq!(line(&[hard(), blocked]), text);
        let own = Family { untranslated: true, ..hard() };
        assert_eq!(line(&[own]), "IPv4 198.51.100.1:7, not translated");
        assert!(line(&[]).starts_with("not known"));
    }

    #[test]
    fn what_was_not_learned_says_what_it_takes() {
        let properties = properties(&hard());
        let filtering = properties.iter().find(|property| property.name == "filtering").unwrap();
        assert!(filtering.value == "not known" && filtering.meaning.contains("RFC 5780"));
    }
}
