package dmthin

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestContexts(t *testing.T) {
	for options, want := range map[string][]string{
		"":                          nil,
		"rw":                        nil,
		"rw,seclabel,noinit_itable": nil,
		`rw,context="system_u:object_r:container_file_t:s0:c1,c2",noinit_itable,stripe=16`: {"context=system_u:object_r:container_file_t:s0:c1,c2"},
		"rw,stripe=16,context=system_u:object_r:container_file_t:s0":                       {"context=system_u:object_r:container_file_t:s0"},
		`ro,fscontext="a:b:c:s0:c1,c2",defcontext=d:e:f,data=ordered`:                      {"fscontext=a:b:c:s0:c1,c2", "defcontext=d:e:f"},
		"rw,logbufs=8,acontext=x": nil,
	} {
		got, err := contexts(options)
		require.NoError(t, err, options)
		require.Equal(t, want, got, options)
	}
	_, err := contexts(`rw,context="a,b`)
	require.Error(t, err)
}

func FuzzContexts(f *testing.F) {
	f.Add(`rw,context="a,b",c=d`)
	f.Fuzz(func(_ *testing.T, options string) { _, _ = contexts(options) })
}
