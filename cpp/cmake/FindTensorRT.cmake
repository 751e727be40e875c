# TensorRT or TensorRT for RTX, whose headers have the same names: TensorRT_ROOT (a CMake or an environment variable)
# is the folder with `include` and `lib`. The library may lie elsewhere, in a wheel for one: TensorRT_LIBRARY is its
# path. The headers include those of the CUDA runtime; its library is not needed.
#
#     find_package(TensorRT COMPONENTS tensorrt_rtx)
#
# (or nvinfer) sets TensorRT_FOUND, and TensorRT_MISSING, a sentence, or makes the target TensorRT::TensorRT.
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h PATH_SUFFIXES include)
find_path(TensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h
  HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda /opt/cuda PATH_SUFFIXES include)
# wheels and runtime packages have the library under its version alone
find_library(TensorRT_LIBRARY NAMES
  ${TensorRT_FIND_COMPONENTS} lib${TensorRT_FIND_COMPONENTS}.so.11 lib${TensorRT_FIND_COMPONENTS}.so.10
  lib${TensorRT_FIND_COMPONENTS}.so.1 PATH_SUFFIXES lib lib64)

set(TensorRT_MISSING "")
if(NOT TensorRT_INCLUDE_DIR)
  set(TensorRT_MISSING "its headers (NvInferRuntime.h) were not found: point TensorRT_ROOT at your install")
elseif(NOT TensorRT_CUDA_INCLUDE_DIR)
  set(TensorRT_MISSING
    "the CUDA runtime's headers (cuda_runtime_api.h) were not found: set TensorRT_CUDA_INCLUDE_DIR to their folder")
elseif(NOT TensorRT_LIBRARY)
  set(TensorRT_MISSING
    "its library (lib${TensorRT_FIND_COMPONENTS}.so) was not found: set TensorRT_LIBRARY to its path")
endif()

if(TensorRT_MISSING)
  set(TensorRT_FOUND FALSE)
else()
  set(TensorRT_FOUND TRUE)
  if(NOT TARGET TensorRT::TensorRT)
    add_library(TensorRT::TensorRT UNKNOWN IMPORTED)
    set_target_properties(TensorRT::TensorRT PROPERTIES IMPORTED_LOCATION "${TensorRT_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR};${TensorRT_CUDA_INCLUDE_DIR}")
  endif()
endif()
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR TensorRT_LIBRARY)
