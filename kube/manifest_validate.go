// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The validations below are of the fields that the agent reads, with the
// rules and words of the API server. They do not replace it: what nobody here
// looks at may be anything.

// maxSliceEndpoints is the API's limit of endpoints in a slice.
const maxSliceEndpoints = 1000

func validateMeta(m *metav1.ObjectMeta, namespaced bool) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("metadata")
	if m.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	for _, msg := range validation.IsDNS1123Subdomain(m.Name) {
		if m.Name != "" {
			errs = append(errs, field.Invalid(path.Child("name"), m.Name, msg))
		}
	}
	if namespaced {
		for _, msg := range validation.IsDNS1123Label(m.Namespace) {
			errs = append(errs, field.Invalid(path.Child("namespace"), m.Namespace, msg))
		}
	}
	if !namespaced && m.Namespace != "" {
		errs = append(errs, field.Forbidden(path.Child("namespace"), "this kind has no namespace"))
	}
	for k, v := range m.Labels {
		for _, msg := range validation.IsQualifiedName(k) {
			errs = append(errs, field.Invalid(path.Child("labels"), k, msg))
		}
		for _, msg := range validation.IsValidLabelValue(v) {
			errs = append(errs, field.Invalid(path.Child("labels").Key(k), v, msg))
		}
	}
	return errs
}

func validateNode(n *corev1.Node) field.ErrorList {
	errs := validateMeta(&n.ObjectMeta, false)
	spec := field.NewPath("spec")
	var seen []netip.Prefix
	for i, c := range n.Spec.PodCIDRs {
		at := spec.Child("podCIDRs").Index(i)
		p, err := netip.ParsePrefix(c)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(at, c, "must be an address range like 10.0.0.0/24"))
		case slices.ContainsFunc(seen, p.Overlaps):
			errs = append(errs, field.Invalid(at, c, "overlaps another range of this node"))
		default:
			seen = append(seen, p)
		}
	}
	if n.Spec.PodCIDR != "" && len(n.Spec.PodCIDRs) > 0 && n.Spec.PodCIDR != n.Spec.PodCIDRs[0] {
		errs = append(errs, field.Invalid(spec.Child("podCIDR"), n.Spec.PodCIDR, "must be podCIDRs[0]"))
	}
	if n.Spec.PodCIDR != "" && len(n.Spec.PodCIDRs) == 0 {
		if _, err := netip.ParsePrefix(n.Spec.PodCIDR); err != nil {
			errs = append(errs, field.Invalid(spec.Child("podCIDR"), n.Spec.PodCIDR, "must be an address range like 10.0.0.0/24"))
		}
	}
	for i, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			errs = append(errs, validateIP(field.NewPath("status", "addresses").Index(i).Child("address"), a.Address)...)
		}
	}
	mode := n.Annotations[AnnotationPeerMode]
	if modes := peerModes(); !slices.Contains(modes, mode) {
		errs = append(errs, field.NotSupported(field.NewPath("metadata", "annotations").Key(AnnotationPeerMode), mode, modes[1:]))
	}
	return errs
}

func validateIP(at *field.Path, s string) field.ErrorList {
	if _, err := netip.ParseAddr(s); err != nil {
		return field.ErrorList{field.Invalid(at, s, "must be an IPv4 or IPv6 address")}
	}
	return nil
}

func validatePort(at *field.Path, port int32) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range validation.IsValidPortNum(int(port)) {
		errs = append(errs, field.Invalid(at, port, msg))
	}
	return errs
}

func validateProtocol(at *field.Path, p corev1.Protocol) field.ErrorList {
	known := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	if slices.Contains(known, p) {
		return nil
	}
	return field.ErrorList{field.NotSupported(at, p, known)}
}

func validateEnum[T ~string](at *field.Path, v T, known ...T) field.ErrorList {
	if slices.Contains(known, v) {
		return nil
	}
	return field.ErrorList{field.NotSupported(at, v, known)}
}

func validateSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	errs := validateMeta(&s.ObjectMeta, true)
	if s.Labels[discoveryv1.LabelServiceName] == "" {
		errs = append(errs, field.Required(field.NewPath("metadata", "labels").Key(discoveryv1.LabelServiceName),
			"names the Service that the endpoints belong to"))
	}
	errs = append(errs, validateEnum(field.NewPath("addressType"), s.AddressType,
		discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)...)
	if len(s.Endpoints) > maxSliceEndpoints {
		errs = append(errs, field.TooMany(field.NewPath("endpoints"), len(s.Endpoints), maxSliceEndpoints))
	}
	for i := range s.Endpoints {
		errs = append(errs, validateEndpoint(field.NewPath("endpoints").Index(i), &s.Endpoints[i], s.AddressType)...)
	}
	names := map[string]bool{}
	for i, p := range s.Ports {
		at := field.NewPath("ports").Index(i)
		if names[*p.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), *p.Name))
		}
		names[*p.Name] = true
		if p.Port != nil {
			errs = append(errs, validatePort(at.Child("port"), *p.Port)...)
		}
		errs = append(errs, validateProtocol(at.Child("protocol"), *p.Protocol)...)
	}
	return errs
}

func validateEndpoint(at *field.Path, ep *discoveryv1.Endpoint, family discoveryv1.AddressType) field.ErrorList {
	if len(ep.Addresses) == 0 {
		return field.ErrorList{field.Required(at.Child("addresses"), "must have an address")}
	}
	var errs field.ErrorList
	for i, a := range ep.Addresses {
		at := at.Child("addresses").Index(i)
		if family == discoveryv1.AddressTypeFQDN {
			continue
		}
		addr, err := netip.ParseAddr(a)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(at, a, "must be an IPv4 or IPv6 address"))
		case addr.Is4() != (family == discoveryv1.AddressTypeIPv4):
			errs = append(errs, field.Invalid(at, a, "is not of the slice's addressType "+string(family)))
		case addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast():
			errs = append(errs, field.Invalid(at, a, "may not be unspecified, loopback, link-local or multicast"))
		}
	}
	return errs
}

func validatePod(p *corev1.Pod) field.ErrorList {
	errs := validateMeta(&p.ObjectMeta, true)
	for i, ip := range p.Status.PodIPs {
		errs = append(errs, validateIP(field.NewPath("status", "podIPs").Index(i).Child("ip"), ip.IP)...)
	}
	for i := range p.Spec.Containers {
		for j, port := range p.Spec.Containers[i].Ports {
			at := field.NewPath("spec", "containers").Index(i).Child("ports").Index(j)
			errs = append(errs, validatePort(at.Child("containerPort"), port.ContainerPort)...)
			errs = append(errs, validateProtocol(at.Child("protocol"), port.Protocol)...)
		}
	}
	return errs
}

func validatePolicy(p *networkingv1.NetworkPolicy) field.ErrorList {
	errs := validateMeta(&p.ObjectMeta, true)
	spec := field.NewPath("spec")
	errs = append(errs, validateSelector(spec.Child("podSelector"), &p.Spec.PodSelector)...)
	for i, t := range p.Spec.PolicyTypes {
		errs = append(errs, validateEnum(spec.Child("policyTypes").Index(i), t,
			networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)...)
	}
	for i, r := range p.Spec.Ingress {
		at := spec.Child("ingress").Index(i)
		errs = append(errs, validateRule(at, at.Child("from"), r.From, r.Ports)...)
	}
	for i, r := range p.Spec.Egress {
		at := spec.Child("egress").Index(i)
		errs = append(errs, validateRule(at, at.Child("to"), r.To, r.Ports)...)
	}
	return errs
}

func validateRule(at, peersAt *field.Path, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) field.ErrorList {
	var errs field.ErrorList
	for i, p := range ports {
		at := at.Child("ports").Index(i)
		errs = append(errs, validateProtocol(at.Child("protocol"), *p.Protocol)...)
		numeric := p.Port != nil && p.Port.Type == intstr.Int
		if numeric {
			errs = append(errs, validatePort(at.Child("port"), p.Port.IntVal)...)
		}
		if p.EndPort != nil && (!numeric || *p.EndPort < p.Port.IntVal || *p.EndPort > 65535) {
			errs = append(errs, field.Invalid(at.Child("endPort"), *p.EndPort, "needs a numeric port that is not above it"))
		}
	}
	for i := range peers {
		errs = append(errs, validatePeer(peersAt.Index(i), &peers[i])...)
	}
	return errs
}

func validatePeer(at *field.Path, p *networkingv1.NetworkPolicyPeer) field.ErrorList {
	var errs field.ErrorList
	if p.IPBlock == nil && p.PodSelector == nil && p.NamespaceSelector == nil {
		errs = append(errs, field.Required(at, "must specify a peer"))
	}
	if p.IPBlock != nil {
		if p.PodSelector != nil || p.NamespaceSelector != nil {
			errs = append(errs, field.Forbidden(at, "may not specify both ipBlock and another peer"))
		}
		errs = append(errs, validateBlock(at.Child("ipBlock"), p.IPBlock)...)
	}
	errs = append(errs, validateSelector(at.Child("podSelector"), p.PodSelector)...)
	return append(errs, validateSelector(at.Child("namespaceSelector"), p.NamespaceSelector)...)
}

func validateBlock(at *field.Path, b *networkingv1.IPBlock) field.ErrorList {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return field.ErrorList{field.Invalid(at.Child("cidr"), b.CIDR, "must be an address range like 10.0.0.0/24")}
	}
	var errs field.ErrorList
	for i, e := range b.Except {
		p, err := netip.ParsePrefix(e)
		if err != nil || !cidr.Contains(p.Addr()) || p.Bits() <= cidr.Bits() {
			errs = append(errs, field.Invalid(at.Child("except").Index(i), e, "must be a range strictly within "+b.CIDR))
		}
	}
	return errs
}

func validateSelector(at *field.Path, s *metav1.LabelSelector) field.ErrorList {
	if s == nil {
		return nil
	}
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		return field.ErrorList{field.Invalid(at, metav1.FormatLabelSelector(s), err.Error())}
	}
	return nil
}
