# OpenVINO's own CMake package, from OpenVINO_DIR, the wheel of the Python in PATH, or the system, in this order. The
# wheel comes before the system: an engine that was built with it gives the same bits when it runs on it.
macro(rescompile_find_openvino)
  if(NOT OpenVINO_DIR)
    find_program(RESCOMPILE_PYTHON NAMES python3 python)
    if(RESCOMPILE_PYTHON)
      execute_process(
        COMMAND "${RESCOMPILE_PYTHON}" -c "import openvino.utils as utils; print(utils.get_cmake_path(), end='')"
        OUTPUT_VARIABLE rescompile_wheel ERROR_QUIET)
      if(EXISTS "${rescompile_wheel}/OpenVINOConfig.cmake")
        set(OpenVINO_DIR "${rescompile_wheel}" CACHE PATH "Folder of OpenVINOConfig.cmake" FORCE)
      endif()
    endif()
  endif()
  # asked for with a version, its package accepts no other year than that
  find_package(OpenVINO QUIET COMPONENTS Runtime)
  if(OpenVINO_FOUND AND OpenVINO_VERSION VERSION_LESS 2025.0)
    message(FATAL_ERROR "OpenVINO ${OpenVINO_VERSION} in ${OpenVINO_DIR} is too old: 2025.0 or newer is needed")
  endif()
endmacro()
